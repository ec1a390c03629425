// Pairwise sums: a row is halved until 32 elements are left, and the sums of the halves are added.
//
// Odd: recursion inside a kernel. Right: the error of a pairwise sum grows with log D, that of a plain one with D.
#include "norm_rows.h"

namespace {

template <typename T>
float pairwise_squares(const T* x, int64_t D) {
  if (D > 32) return pairwise_squares(x, D / 2) + pairwise_squares(x + D / 2, D - D / 2);
  float sum = 0.f;
  for (int64_t i = 0; i < D; ++i) sum += load(x + i) * load(x + i);
  return sum;
}

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& x, const Tensor& residual, const std::optional<Tensor>& weight,
                                           double eps) {
  check_rows("add_rms_norm residual", residual, x);
  const int64_t R = rows_of(x), D = x.size(-1);
  if (weight) check_vector("add_rms_norm weight", *weight, D);
  Tensor y = torch::stable::empty_like(x), sum = torch::stable::empty_like(x);
  Tensor rstd = torch::stable::new_empty(x, {R}, ScalarType::Float);
  dispatch_float(x.scalar_type(), "add_rms_norm", [&]<typename T>() {
    const T *a = reads<T>(x), *b = reads<T>(residual);
    T* s = writes<T>(sum);
    torch::stable::parallel_for(0, R, 8, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin * D; i < end * D; ++i) store(s + i, load(a + i) + load(b + i));
      for (int64_t r = begin; r < end; ++r) {
        const float scale = 1.f / std::sqrt(pairwise_squares(s + r * D, D) / static_cast<float>(D) + static_cast<float>(eps));
        writes<float>(rstd)[r] = scale;
        row_scale(s + r * D, weight ? reads<float>(*weight) : nullptr, scale, writes<T>(y) + r * D, D);
      }
    });
  });
  return {y, sum, rstd};
}

std::tuple<Tensor, Tensor> backward(const Tensor& dy, const std::optional<Tensor>& dsum, const Tensor& sum,
                                    const std::optional<Tensor>& weight, const Tensor& rstd) {
  return norm_backward(dy, sum, weight, rstd, dsum);
}

}  // namespace

LAB_SCHEMAS(m) {
  m.def("forward(Tensor x, Tensor residual, Tensor? weight, float eps) -> (Tensor y, Tensor sum, Tensor rstd)");
  m.def("backward(Tensor dy, Tensor? dsum, Tensor sum, Tensor? weight, Tensor rstd) -> (Tensor dx, Tensor dweight)");
}

LAB_KERNELS(CPU, m) {
  m.impl("forward", TORCH_BOX(&forward));
  m.impl("backward", TORCH_BOX(&backward));
}
