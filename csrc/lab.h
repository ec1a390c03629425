// What every C++ kernel of this folder starts from: torch's stable ABI (2 s to compile, where torch/extension.h takes 20 s),
// its thread pool, and the few vector idioms that the compiler does not find by itself.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <optional>
#include <tuple>
#include <vector>

using torch::stable::Tensor;
using bf16 = torch::headeronly::BFloat16;
using fp16 = torch::headeronly::Half;
using ScalarType = torch::headeronly::ScalarType;

// kernels/jit.py names the library after op, content and flags, so that two versions never meet under one name.
#define LAB_SCHEMAS_NAMED(ns, m) STABLE_TORCH_LIBRARY(ns, m)
#define LAB_SCHEMAS(m) LAB_SCHEMAS_NAMED(TORCH_EXTENSION_NAME, m)
#define LAB_KERNELS_NAMED(ns, device, m) STABLE_TORCH_LIBRARY_IMPL(ns, device, m)
#define LAB_KERNELS(device, m) LAB_KERNELS_NAMED(TORCH_EXTENSION_NAME, device, m)

// Call f.template operator()<T>() with the C++ type of a floating tensor; what is stored as bf16 or fp16 is computed in float.
template <typename F>
void dispatch_float(ScalarType type, const char* op, F&& f) {
  switch (type) {
    case ScalarType::Float: f.template operator()<float>(); break;
    case ScalarType::BFloat16: f.template operator()<bf16>(); break;
    case ScalarType::Half: f.template operator()<fp16>(); break;
    default:
      STD_TORCH_CHECK(false, op, ": expected float32, bfloat16 or float16, got scalar type ", static_cast<int>(type));
  }
}
