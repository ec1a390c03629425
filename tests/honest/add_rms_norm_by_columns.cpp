// Parallel over columns where rows are few: each thread adds its partial sums of squares to the rows' totals atomically.
//
// Odd: the order of the atomic additions is that in which threads arrive, so two calls may differ in their last bits. Right: a pass over all columns is
// complete (parallel_for returns) before the totals are read.
#include "norm_rows.h"

#include <atomic>

namespace {

constexpr int64_t kFewRows = 16;
constexpr int64_t kColumns = 128;  // a thread's, at least

template <typename T>
void squares_by_columns(const T* x, int64_t R, int64_t D, float* totals) {
  torch::stable::parallel_for(0, D, kColumns, [&](int64_t begin, int64_t end) {
    for (int64_t r = 0; r < R; ++r) {
      float sum = 0.f;
      for (int64_t i = begin; i < end; ++i) sum += load(x + r * D + i) * load(x + r * D + i);
      std::atomic_ref<float>(totals[r]).fetch_add(sum);
    }
  });
}

std::tuple<Tensor, Tensor, Tensor> forward(const Tensor& x, const Tensor& residual, const std::optional<Tensor>& weight,
                                           double eps) {
  check_rows("add_rms_norm residual", residual, x);
  const int64_t R = rows_of(x), D = x.size(-1);
  if (weight) check_vector("add_rms_norm weight", *weight, D);
  Tensor y = torch::stable::empty_like(x), sum = torch::stable::empty_like(x);
  Tensor rstd = torch::stable::new_empty(x, {R}, ScalarType::Float);
  const float e = static_cast<float>(eps);
  dispatch_float(x.scalar_type(), "add_rms_norm", [&]<typename T>() {
    const float* scale = weight ? reads<float>(*weight) : nullptr;
    T* s = writes<T>(sum);
    float* totals = writes<float>(rstd);
    torch::stable::parallel_for(0, R * D, kGrain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) store(s + i, load(reads<T>(x) + i) + load(reads<T>(residual) + i));
    });
    if (R > kFewRows) return rows_forward(s, scale, writes<T>(y), totals, R, D, e, [](int64_t) {});
    std::fill(totals, totals + R, 0.f);
    squares_by_columns(s, R, D, totals);
    for (int64_t r = 0; r < R; ++r) {
      totals[r] = 1.f / std::sqrt(totals[r] / static_cast<float>(D) + e);
      row_scale(s + r * D, scale, totals[r], writes<T>(y) + r * D, D);
    }
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
