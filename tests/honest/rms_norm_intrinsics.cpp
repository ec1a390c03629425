// Sums of squares by AVX2 intrinsics, with a scalar tail, and plain C++ where the instruction set is another.
//
// Odd: three code paths by preprocessor and length. Right: eight partial sums are added at the end; the tail takes what is left over, and a row
// shorter than eight is all tail.
#include "norm_rows.h"

#if defined(__AVX2__) && defined(__FMA__)
#include <immintrin.h>
#endif

namespace {

template <typename T>
float squares_of(const T* x, int64_t D) {
  float sum = 0.f;
  for (int64_t i = 0; i < D; ++i) sum += load(x + i) * load(x + i);
  return sum;
}

#if defined(__AVX2__) && defined(__FMA__)
float squares_of(const float* x, int64_t D) {
  __m256 lanes = _mm256_setzero_ps();
  int64_t i = 0;
  for (; i + 8 <= D; i += 8) {
    const __m256 v = _mm256_loadu_ps(x + i);
    lanes = _mm256_fmadd_ps(v, v, lanes);
  }
  alignas(32) float parts[8];
  _mm256_store_ps(parts, lanes);
  float sum = 0.f;
  for (float part : parts) sum += part;
  for (; i < D; ++i) sum += x[i] * x[i];
  return sum;
}
#endif

std::tuple<Tensor, Tensor> forward(const Tensor& x, const std::optional<Tensor>& weight, double eps) {
  check_rows("rms_norm x", x, x);
  const int64_t R = rows_of(x), D = x.size(-1);
  if (weight) check_vector("rms_norm weight", *weight, D);
  Tensor y = torch::stable::empty_like(x);
  Tensor rstd = torch::stable::new_empty(x, {R}, ScalarType::Float);
  dispatch_float(x.scalar_type(), "rms_norm", [&]<typename T>() {
    const T* rows = reads<T>(x);
    torch::stable::parallel_for(0, R, 16, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        const float scale = 1.f / std::sqrt(squares_of(rows + r * D, D) / static_cast<float>(D) + static_cast<float>(eps));
        writes<float>(rstd)[r] = scale;
        row_scale(rows + r * D, weight ? reads<float>(*weight) : nullptr, scale, writes<T>(y) + r * D, D);
      }
    });
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
