// Every thread keeps a row of floats from call to call (thread_local), in which it adds and squares.
//
// Odd: memory that outlives the call. Right: a row is written whole before it is read, and grows when D does; what is returned is fresh.
#include "norm_rows.h"

namespace {

float* row_of_this_thread(int64_t D) {
  thread_local std::vector<float> row;
  if (row.size() < static_cast<size_t>(D)) row.resize(static_cast<size_t>(D));
  return row.data();
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
      float* row = row_of_this_thread(D);
      for (int64_t r = begin; r < end; ++r) {
        for (int64_t i = 0; i < D; ++i) {
          store(s + r * D + i, load(a + r * D + i) + load(b + r * D + i));
          row[i] = load(s + r * D + i);
        }
        const float scale = row_rstd(row, D, static_cast<float>(eps));
        writes<float>(rstd)[r] = scale;
        for (int64_t i = 0; i < D; ++i) store(writes<T>(y) + r * D + i, row[i] * scale * (weight ? reads<float>(*weight)[i] : 1.f));
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
