// What every C++ kernel of this folder starts from: torch's stable ABI (2 s to compile, where torch/extension.h takes 20 s),
// its thread pool, and the conversions and functions that the compiler would not vectorise by itself.
//
// A loop becomes vector code under `#pragma omp simd`, a sum under `#pragma omp simd reduction(+ : sum)`; nothing else is
// reassociated (kernels/jit.py sets the flags), so arithmetic written in an order that matters keeps it. Everything below is
// branchless and inlines into such loops for AVX-512, AVX2 and the generic target alike.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Exception.h>
#include <torch/headeronly/util/Half.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <optional>
#include <sstream>
#include <string>
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

// For integers that are not negative.
constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t multiple) { return ceil_div(a, multiple) * multiple; }
// Number t of n, by turns from both ends: where the work grows along the way, each pair of neighbours adds up to the same amount.
constexpr int64_t from_both_ends(int64_t t, int64_t n) { return t % 2 == 0 ? t / 2 : n - 1 - t / 2; }

// A tensor in words, for messages: "Float (2, 3)", with its strides if it is not contiguous.
inline std::string describe(const Tensor& t) {
  std::ostringstream text;
  const auto list = [&](const auto& numbers) {
    text << " (";
    const char* separator = "";
    for (const int64_t number : numbers) {
      text << separator << number;
      separator = ", ";
    }
    text << ")";
  };
  text << t.scalar_type();
  list(t.sizes());
  if (!t.is_contiguous()) {
    text << " with strides";
    list(t.strides());
  }
  return text.str();
}

// Calls f.template operator()<T>() with the C++ type of a floating tensor. bf16 and fp16 are only stored: arithmetic is in float.
template <typename F>
void dispatch_float(ScalarType type, const char* op, F&& f) {
  switch (type) {
    case ScalarType::Float: f.template operator()<float>(); break;
    case ScalarType::BFloat16: f.template operator()<bf16>(); break;
    case ScalarType::Half: f.template operator()<fp16>(); break;
    default: STD_TORCH_CHECK(false, op, ": expected float32, bfloat16 or float16, got ", type);
  }
}

// The data of a tensor whose type dispatch_float has found: for reading, for writing.
template <typename T>
const T* reads(const Tensor& t) { return static_cast<const T*>(t.const_data_ptr()); }
template <typename T>
T* writes(const Tensor& t) { return static_cast<T*>(t.mutable_data_ptr()); }

// ---- one element: load widens to float, store rounds to nearest even; NaN and infinity survive both ----

inline float load(const float* p) { return *p; }
inline void store(float* p, float v) { *p = v; }

inline float load(const bf16* p) { return std::bit_cast<float>(static_cast<uint32_t>(p->x) << 16); }
inline void store(bf16* p, float v) {
  const uint32_t u = std::bit_cast<uint32_t>(v);
  const uint32_t rounded = u + 0x7fff + ((u >> 16) & 1);
  p->x = static_cast<uint16_t>((v == v ? rounded : 0x7fc00000) >> 16);
}

inline float load(const fp16* p) {
  const uint32_t h = p->x, magnitude = (h & 0x7fff) << 13;
  const float scaled = std::bit_cast<float>(magnitude) * 0x1p112f;  // moves the exponent's bias; subnormals come out right
  const uint32_t u = magnitude < 0x0f800000 ? std::bit_cast<uint32_t>(scaled) : magnitude | 0x7f800000;
  return std::bit_cast<float>(u | (h & 0x8000) << 16);
}
inline void store(fp16* p, float v) {
  const uint32_t u = std::bit_cast<uint32_t>(v), magnitude = u & 0x7fffffff;
  const uint32_t normal = (magnitude - (112u << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  // Added to 0.5, a value below 2^-14 leaves its rounded 10 bits at the end of the sum's mantissa.
  const uint32_t subnormal = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + 0.5f) - 0x3f000000;
  uint32_t h = magnitude < 0x38800000 ? subnormal : normal;
  h = magnitude < 0x47800000 ? h : 0x7c00;  // 65536 and more: infinity (65520 has rounded up to it already)
  h = magnitude > 0x7f800000 ? 0x7e00 : h;
  p->x = static_cast<uint16_t>(h | (u >> 16 & 0x8000));
}

// ---- functions of one float ----

// e^x to a relative error of 1e-7. Results below the smallest normal float (x < -87.3) are 0; NaN stays NaN.
inline float fast_exp(float x) {
  // x = n ln 2 + r, |r| <= ln 2 / 2. Adding 1.5 * 2^23 leaves the integer n in the low bits of the sum.
  const int32_t n = static_cast<int32_t>(std::bit_cast<uint32_t>(x * 1.44269504f + 12582912.f) - 0x4b400000u);
  const float nf = static_cast<float>(n);
  const float r = (x - nf * 0.693359375f) - nf * -2.12194440e-4f;
  float p = 1.9875691500e-4f;  // Cephes expf, degree 7: e^r = 1 + r + r^2 p(r)
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.f;
  const float y = std::bit_cast<float>(std::bit_cast<uint32_t>(p) + (static_cast<uint32_t>(n) << 23));  // p * 2^n
  const float in_range = x < -87.33654f ? 0.f : y;
  return x <= 88.72283f ? in_range : x + std::numeric_limits<float>::infinity();  // overflow, or NaN
}

// tanh x to a relative error of 1.5e-7; NaN stays NaN.
inline float fast_tanh(float x) {
  const float a = std::fabs(x), s = x * x;
  float p = -5.70498872745e-3f;  // Cephes tanhf below 0.625, where 1 - 2 / (e^2x + 1) cancels
  p = p * s + 2.06390887954e-2f;
  p = p * s - 5.37397155531e-2f;
  p = p * s + 1.33314422036e-1f;
  p = p * s - 3.33332819422e-1f;
  const float near = p * s * x + x;
  const float far = std::copysign(1.f - 2.f / (fast_exp(2.f * a) + 1.f), x);
  return a < 0.625f ? near : far;
}
