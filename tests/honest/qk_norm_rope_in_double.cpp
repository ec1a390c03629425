// One row after another, head by head through time, in double and without vectors.
//
// Odd: threads take rows across tokens and heads, and sums are wider than any tensor. Right: rows do not know of each other.
#include "lab.h"

namespace {

constexpr int64_t kGrain = 64;  // rows

template <typename T>
struct Heads {
  const T* data;
  int64_t batch, time, head;

  explicit Heads(const Tensor& x) : data(reads<T>(x)), batch(x.stride(0)), time(x.stride(1)), head(x.stride(2)) {}
  const T* at(int64_t b, int64_t t, int64_t h) const { return data + b * batch + t * time + h * head; }
};

template <typename T>
double rstd_of(const T* x, int64_t D, double eps) {
  double sum = 0.;
  for (int64_t i = 0; i < D; ++i) sum += static_cast<double>(load(x + i)) * load(x + i);
  return 1. / std::sqrt(sum / static_cast<double>(D) + eps);
}

template <typename T, typename Row>
void for_each_row(const Tensor& x, double eps, Row&& row) {
  const int64_t B = x.size(0), tokens = x.size(1), H = x.size(2), D = x.size(3);
  const Heads<T> rows(x);
  torch::stable::parallel_for(0, B * H * tokens, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / (H * tokens), h = i / tokens % H, t = i % tokens;
      row(b, t, h, rstd_of(rows.at(b, t, h), D, eps));
    }
  });
}

template <typename T>
void turn(const Tensor& x, const Tensor& cos, const Tensor& sin, double eps, Tensor& y) {
  const int64_t H = x.size(2), half = x.size(3) / 2, tokens = x.size(1);
  const Heads<T> from(x);
  T* to = writes<T>(y);
  for_each_row<T>(x, eps, [&](int64_t b, int64_t t, int64_t h, double rstd) {
    const T* a = from.at(b, t, h);
    const float *c = reads<float>(cos) + t * half, *s = reads<float>(sin) + t * half;
    T* out = to + ((b * tokens + t) * H + h) * 2 * half;
    for (int64_t i = 0; i < half; ++i) {
      const double u = load(a + i) * rstd, v = load(a + half + i) * rstd;
      store(out + i, static_cast<float>(u * c[i] - v * s[i]));
      store(out + half + i, static_cast<float>(v * c[i] + u * s[i]));
    }
  });
}

template <typename T>
void turn_back(const Tensor& dy, const Tensor& x, const Tensor& cos, const Tensor& sin, double eps, Tensor& dx) {
  const int64_t H = x.size(2), half = x.size(3) / 2, tokens = x.size(1);
  const Heads<T> up(dy), from(x);
  T* to = writes<T>(dx);
  for_each_row<T>(x, eps, [&](int64_t b, int64_t t, int64_t h, double rstd) {
    const T *d = up.at(b, t, h), *a = from.at(b, t, h);
    const float *c = reads<float>(cos) + t * half, *s = reads<float>(sin) + t * half;
    T* out = to + ((b * tokens + t) * H + h) * 2 * half;
    double dot = 0.;
    for (int64_t i = 0; i < half; ++i)
      dot += static_cast<double>(load(a + i)) * (load(d + i) * c[i] + load(d + half + i) * s[i]) +
             static_cast<double>(load(a + half + i)) * (load(d + half + i) * c[i] - load(d + i) * s[i]);
    const double m = dot * rstd * rstd / static_cast<double>(2 * half);
    for (int64_t i = 0; i < half; ++i) {
      const float u = load(d + i), v = load(d + half + i);
      store(out + i, static_cast<float>(rstd * (u * c[i] + v * s[i] - load(a + i) * m)));
      store(out + half + i, static_cast<float>(rstd * (v * c[i] - u * s[i] - load(a + half + i) * m)));
    }
  });
}

std::tuple<Tensor, Tensor> forward(const Tensor& q, const Tensor& k, const Tensor& cos, const Tensor& sin, double eps) {
  Tensor q_out = torch::stable::new_empty(q, q.sizes()), k_out = torch::stable::new_empty(k, k.sizes());
  dispatch_float(q.scalar_type(), "qk_norm_rope", [&]<typename T>() {
    turn<T>(q, cos, sin, eps, q_out);
    turn<T>(k, cos, sin, eps, k_out);
  });
  return {q_out, k_out};
}

std::tuple<Tensor, Tensor> backward(const Tensor& dq_out, const Tensor& dk_out, const Tensor& q, const Tensor& k,
                                    const Tensor& cos, const Tensor& sin, double eps) {
  Tensor dq = torch::stable::new_empty(q, q.sizes()), dk = torch::stable::new_empty(k, k.sizes());
  dispatch_float(q.scalar_type(), "qk_norm_rope", [&]<typename T>() {
    turn_back<T>(dq_out, q, cos, sin, eps, dq);
    turn_back<T>(dk_out, k, cos, sin, eps, dk);
  });
  return {dq, dk};
}

}  // namespace

LAB_SCHEMAS(m) {
  m.def("forward(Tensor q, Tensor k, Tensor cos, Tensor sin, float eps) -> (Tensor q_out, Tensor k_out)");
  m.def("backward(Tensor dq_out, Tensor dk_out, Tensor q, Tensor k, Tensor cos, Tensor sin, float eps) -> (Tensor dq, Tensor dk)");
}

LAB_KERNELS(CPU, m) {
  m.impl("forward", TORCH_BOX(&forward));
  m.impl("backward", TORCH_BOX(&backward));
}
