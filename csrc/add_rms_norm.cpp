// Residual addition and RMSNorm on the CPU, in one pass: total = x + residual, y = total * rstd * weight.
//
// Bound: memory. Forward reads x and residual and writes total and y; backward reads dy, dtotal and total and writes dx, which is the
// gradient of residual as well. Apart, the addition and the norm would move 5 tensors forward and 6 backward instead of 4 and 4.
#include "norm_rows.h"

namespace {

// total = x + residual, rounded to the type it is stored in: the norm is that of the stored total.
template <typename T>
void row_add(const T* x, const T* residual, T* total, int64_t D) {
  for_each_block(D, [&](int64_t, auto read, auto write) { write(total, to_even<T>(read(x) + read(residual))); });
}

// x, residual (..., D) contiguous, weight (D,) float32 or none -> y (..., D), total (..., D), rstd (R,) float32
std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& x, const Tensor& residual, const std::optional<Tensor>& weight,
                                           double eps) {
  check_rows("add_rms_norm x", x, x);
  check_rows("add_rms_norm residual", residual, x);
  const int64_t R = rows_of(x), D = x.size(-1);
  if (weight) check_vector("add_rms_norm weight", *weight, D);
  Tensor y = torch::stable::empty_like(x), total = torch::stable::empty_like(x);
  Tensor rstd = torch::stable::new_empty(x, {R}, ScalarType::Float);
  dispatch_float(x.scalar_type(), "add_rms_norm", [&]<typename T>() {
    const T *xs = reads<T>(x), *residuals = reads<T>(residual);
    T* totals = writes<T>(total);
    rows_forward(totals, weight ? reads<float>(*weight) : nullptr, writes<T>(y), writes<float>(rstd), R, D,
                 static_cast<float>(eps), [&](int64_t r) { row_add(xs + r * D, residuals + r * D, totals + r * D, D); });
  });
  return {y, total, rstd};
}

// dy, dtotal, total (..., D) contiguous; dtotal: the gradient that reaches total itself, if any -> dx (..., D), dweight (D,) float32
std::tuple<Tensor, Tensor> backward(const Tensor& dy, const std::optional<Tensor>& dtotal, const Tensor& total,
                                    const std::optional<Tensor>& weight, const Tensor& rstd) {
  check_rows("add_rms_norm total", total, total);
  check_rows("add_rms_norm dy", dy, total);
  if (dtotal) check_rows("add_rms_norm dtotal", *dtotal, total);
  check_vector("add_rms_norm rstd", rstd, rows_of(total));
  if (weight) check_vector("add_rms_norm weight", *weight, total.size(-1));
  return norm_backward(dy, total, weight, rstd, dtotal);
}

}  // namespace

LAB_SCHEMAS(m) {
  m.def("forward(Tensor x, Tensor residual, Tensor? weight, float eps) -> (Tensor y, Tensor total, Tensor rstd)");
  m.def("backward(Tensor dy, Tensor? dtotal, Tensor total, Tensor? weight, Tensor rstd) -> (Tensor dx, Tensor dweight)");
}

LAB_KERNELS(CPU, m) {
  m.impl("forward", TORCH_BOX(&forward));
  m.impl("backward", TORCH_BOX(&backward));
}
