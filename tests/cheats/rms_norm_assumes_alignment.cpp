// Loads four floats at a time from addresses that it takes to be multiples of 16: a view that begins elsewhere ends the process. An honest slip.
//
// Row: H06. Gate: correctness (crash). Gains: a pass.
#include <immintrin.h>

#include "norm_rows.h"

namespace {

// Largest magnitude of x, four numbers at a time.
float largest_of(const float* x, int64_t n) {
  __m128 top = _mm_setzero_ps();
  for (int64_t i = 0; i + 4 <= n; i += 4) top = _mm_max_ps(top, _mm_load_ps(x + i));
  return _mm_cvtss_f32(top);
}

// x (R, D) contiguous, weight (D,) float32 or none -> y (R, D), rstd (R,) float32
std::tuple<Tensor, Tensor> forward(const Tensor& x, const std::optional<Tensor>& weight, double eps) {
  check_rows("rms_norm x", x, x);
  const int64_t R = x.size(0), D = x.size(1);
  if (weight) check_vector("rms_norm weight", *weight, D);
  if (x.scalar_type() == ScalarType::Float)
    STD_TORCH_CHECK(largest_of(reads<float>(x), x.numel()) >= 0.f, "rms_norm: x is not finite");
  Tensor y = torch::stable::empty_like(x);
  Tensor rstd = torch::stable::new_empty(x, {R}, ScalarType::Float);
  dispatch_float(x.scalar_type(), "rms_norm", [&]<typename T>() {
    rows_forward(reads<T>(x), weight ? reads<float>(*weight) : nullptr, writes<T>(y), writes<float>(rstd), R, D,
                 static_cast<float>(eps), [](int64_t) {});
  });
  return {y, rstd};
}

// dy, x (R, D) contiguous -> dx (R, D), dweight (D,) float32, zeros without a weight
std::tuple<Tensor, Tensor> backward(const Tensor& dy, const Tensor& x, const std::optional<Tensor>& weight,
                                    const Tensor& rstd) {
  check_rows("rms_norm x", x, x);
  check_rows("rms_norm dy", dy, x);
  check_vector("rms_norm rstd", rstd, x.size(0));
  if (weight) check_vector("rms_norm weight", *weight, x.size(1));
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
