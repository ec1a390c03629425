// Its own autotuner: on the first call of a size it times one pass over a row with the row kept as floats against two passes over the row as it is.
//
// Odd: it reads a clock and remembers sizes; a later call may take the other way and differ in its last bits. Right: both ways are the norm,
// and the time chooses only between them.
#include "norm_rows.h"

#include <chrono>
#include <map>
#include <mutex>

namespace {

template <typename T>
float as_it_is(const T* x, const float* weight, float eps, T* y, int64_t D) {
  const float rstd = row_rstd(x, D, eps);
  row_scale(x, weight, rstd, y, D);
  return rstd;
}

template <typename T>
float kept_as_floats(const T* x, const float* weight, float eps, T* y, int64_t D) {
  std::vector<float> row(static_cast<size_t>(D));
  float sum = 0.f;
  for (int64_t i = 0; i < D; ++i) {
    row[static_cast<size_t>(i)] = load(x + i);
    sum += row[static_cast<size_t>(i)] * row[static_cast<size_t>(i)];
  }
  const float rstd = 1.f / std::sqrt(sum / static_cast<float>(D) + eps);
  for (int64_t i = 0; i < D; ++i) store(y + i, row[static_cast<size_t>(i)] * rstd * (weight ? weight[i] : 1.f));
  return rstd;
}

template <typename T>
using Way = float (*)(const T*, const float*, float, T*, int64_t);

template <typename T>
double seconds(Way<T> way, const T* x, const float* weight, float eps, T* y, int64_t D) {
  const auto started = std::chrono::steady_clock::now();
  for (int i = 0; i < 5; ++i) way(x, weight, eps, y, D);
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
}

template <typename T>
Way<T> best(const T* x, const float* weight, float eps, T* y, int64_t D) {
  static std::map<int64_t, Way<T>> known;
  static std::mutex guard;
  const std::lock_guard lock(guard);
  const auto found = known.find(D);
  if (found != known.end()) return found->second;
  const bool plain = seconds<T>(as_it_is, x, weight, eps, y, D) <= seconds<T>(kept_as_floats, x, weight, eps, y, D);
  return known[D] = plain ? as_it_is<T> : kept_as_floats<T>;
}

std::tuple<Tensor, Tensor> forward(const Tensor& x, const std::optional<Tensor>& weight, double eps) {
  check_rows("rms_norm x", x, x);
  const int64_t R = rows_of(x), D = x.size(-1);
  if (weight) check_vector("rms_norm weight", *weight, D);
  const float* scale = weight ? reads<float>(*weight) : nullptr;
  const float e = static_cast<float>(eps);
  Tensor y = torch::stable::empty_like(x);
  Tensor rstd = torch::stable::new_empty(x, {R}, ScalarType::Float);
  dispatch_float(x.scalar_type(), "rms_norm", [&]<typename T>() {
    const T* rows = reads<T>(x);
    T* out = writes<T>(y);
    const Way<T> way = R > 0 ? best(rows, scale, e, out, D) : as_it_is<T>;
    torch::stable::parallel_for(0, R, 16, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) writes<float>(rstd)[r] = way(rows + r * D, scale, e, out + r * D, D);
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
