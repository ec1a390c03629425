// Compensated sums (Kahan 1965), one element after another.
//
// Odd: four operations an element in an order that no compiler may change, so it is slow. Right: it is nearer to float64 than any other
// float32 sum. The backward is the shipped one.
#include "norm_rows.h"

namespace {

struct KahanSum {
  float sum = 0.f, lost = 0.f;

  void add(float v) {
    const float wanted = v - lost, next = sum + wanted;
    lost = (next - sum) - wanted;
    sum = next;
  }
};

std::tuple<Tensor, Tensor> forward(const Tensor& x, const std::optional<Tensor>& weight, double eps) {
  check_rows("rms_norm x", x, x);
  const int64_t R = rows_of(x), D = x.size(-1);
  if (weight) check_vector("rms_norm weight", *weight, D);
  Tensor y = torch::stable::empty_like(x);
  Tensor rstd = torch::stable::new_empty(x, {R}, ScalarType::Float);
  dispatch_float(x.scalar_type(), "rms_norm", [&]<typename T>() {
    const T* rows = reads<T>(x);
    torch::stable::parallel_for(0, R, 1, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        KahanSum squares;
        for (int64_t i = 0; i < D; ++i) squares.add(load(rows + r * D + i) * load(rows + r * D + i));
        writes<float>(rstd)[r] = 1.f / std::sqrt(squares.sum / static_cast<float>(D) + static_cast<float>(eps));
        row_scale(rows + r * D, weight ? reads<float>(*weight) : nullptr, reads<float>(rstd)[r], writes<T>(y) + r * D, D);
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
