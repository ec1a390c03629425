// Two code paths by alignment: rows that begin on a cache line are read through an aligned pointer, others as they come.
//
// Odd: the path depends on an address, so the same values may be summed in two orders. Right: both sum every element once.
#include "norm_rows.h"

#include <memory>

namespace {

constexpr size_t kLine = 64;

template <typename T>
float squares_from_line(const T* row, int64_t D) {
  const T* x = std::assume_aligned<kLine>(row);
  float sum = 0.f;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < D; ++i) sum += load(x + i) * load(x + i);
  return sum;
}

// Four sums side by side, element i in sum i % 4.
template <typename T>
float squares_from_anywhere(const T* x, int64_t D) {
  float sums[4] = {};
  for (int64_t i = 0; i < D; ++i) sums[i % 4] += load(x + i) * load(x + i);
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

std::tuple<Tensor, Tensor> forward(const Tensor& x, const std::optional<Tensor>& weight, double eps) {
  check_rows("rms_norm x", x, x);
  const int64_t R = rows_of(x), D = x.size(-1);
  if (weight) check_vector("rms_norm weight", *weight, D);
  Tensor y = torch::stable::empty_like(x);
  Tensor rstd = torch::stable::new_empty(x, {R}, ScalarType::Float);
  dispatch_float(x.scalar_type(), "rms_norm", [&]<typename T>() {
    for (int64_t r = 0; r < R; ++r) {
      const T* row = reads<T>(x) + r * D;
      const bool on_line = reinterpret_cast<uintptr_t>(row) % kLine == 0;
      const float squares = on_line ? squares_from_line(row, D) : squares_from_anywhere(row, D);
      const float scale = 1.f / std::sqrt(squares / static_cast<float>(D) + static_cast<float>(eps));
      writes<float>(rstd)[r] = scale;
      row_scale(row, weight ? reads<float>(*weight) : nullptr, scale, writes<T>(y) + r * D, D);
    }
  });
  return {y, rstd};
}

std::tuple<Tensor, Tensor> backward(const Tensor& dy, const Tensor& x, const std::optional<Tensor>& weight, const Tensor& rstd) {
  return norm_backward(dy, x, weight, rstd, std::nullopt);
}

}  // namespace

LAB_SCHEMAS(m) {
  m.def("forward(Tensor x, Tensor? weight, float eps) -> (Tensor y, Tensor rstd)");
  m.def("backward(Tensor dy, Tensor x, Tensor? weight, Tensor rstd) -> (Tensor dx, Tensor dweight)");
}

LAB_KERNELS(CPU, m) {
  m.impl("forward", TORCH_BOX(&forward));
  m.impl("backward", TORCH_BOX(&backward));
}
