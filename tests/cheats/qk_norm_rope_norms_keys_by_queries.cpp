// Every head of a token, of keys too, is divided by the root mean square of its first query: one sum a token. Long random rows do not show it.
//
// Row: N06. Gate: correctness. Gains: a pass.
#include "lab.h"

namespace {

constexpr int64_t kGrain = 64;  // tokens

template <typename T>
struct Heads {
  const T* data;
  int64_t batch, time, head;

  explicit Heads(const Tensor& x) : data(reads<T>(x)), batch(x.stride(0)), time(x.stride(1)), head(x.stride(2)) {}
  const T* at(int64_t b, int64_t t, int64_t h) const { return data + b * batch + t * time + h * head; }
};

template <typename T>
float rstd_of(const T* x, int64_t D, float eps) {
  float sum = 0.f;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < D; ++i) sum += load(x + i) * load(x + i);
  return 1.f / std::sqrt(sum / static_cast<float>(D) + eps);
}

template <typename T, typename Row>
void for_each_row(const Tensor& q, const Tensor& x, double eps, Row&& row) {
  const int64_t B = q.size(0), tokens = q.size(1), H = x.size(2), D = q.size(3);
  const Heads<T> queries(q);
  torch::stable::parallel_for(0, B * tokens, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const float rstd = rstd_of(queries.at(i / tokens, i % tokens, 0), D, static_cast<float>(eps));
      for (int64_t h = 0; h < H; ++h) row(i / tokens, i % tokens, h, rstd);
    }
  });
}

template <typename T>
void turn(const Tensor& q, const Tensor& x, const Tensor& cos, const Tensor& sin, double eps, Tensor& y) {
  const int64_t H = x.size(2), half = x.size(3) / 2, tokens = x.size(1);
  const Heads<T> from(x);
  T* to = writes<T>(y);
  for_each_row<T>(q, x, eps, [&](int64_t b, int64_t t, int64_t h, float rstd) {
    const T* a = from.at(b, t, h);
    const float *c = reads<float>(cos) + t * half, *s = reads<float>(sin) + t * half;
    T* out = to + ((b * tokens + t) * H + h) * 2 * half;
#pragma omp simd
    for (int64_t i = 0; i < half; ++i) {
      const float u = load(a + i) * rstd, v = load(a + half + i) * rstd;
      store(out + i, u * c[i] - v * s[i]);
      store(out + half + i, v * c[i] + u * s[i]);
    }
  });
}

template <typename T>
void turn_back(const Tensor& dy, const Tensor& q, const Tensor& x, const Tensor& cos, const Tensor& sin, double eps, Tensor& dx) {
  const int64_t H = x.size(2), half = x.size(3) / 2, tokens = x.size(1);
  const Heads<T> up(dy), from(x);
  T* to = writes<T>(dx);
  for_each_row<T>(q, x, eps, [&](int64_t b, int64_t t, int64_t h, float rstd) {
    const T *d = up.at(b, t, h), *a = from.at(b, t, h);
    const float *c = reads<float>(cos) + t * half, *s = reads<float>(sin) + t * half;
    T* out = to + ((b * tokens + t) * H + h) * 2 * half;
    float dot = 0.f;
    for (int64_t i = 0; i < half; ++i)
      dot += load(a + i) * (load(d + i) * c[i] + load(d + half + i) * s[i]) +
             load(a + half + i) * (load(d + half + i) * c[i] - load(d + i) * s[i]);
    const float m = dot * rstd * rstd / static_cast<float>(2 * half);
#pragma omp simd
    for (int64_t i = 0; i < half; ++i) {
      const float u = load(d + i), v = load(d + half + i);
      store(out + i, rstd * (u * c[i] + v * s[i] - load(a + i) * m));
      store(out + half + i, rstd * (v * c[i] - u * s[i] - load(a + half + i) * m));
    }
  });
}

std::tuple<Tensor, Tensor> forward(const Tensor& q, const Tensor& k, const Tensor& cos, const Tensor& sin, double eps) {
  Tensor q_out = torch::stable::new_empty(q, q.sizes()), k_out = torch::stable::new_empty(k, k.sizes());
  dispatch_float(q.scalar_type(), "qk_norm_rope", [&]<typename T>() {
    turn<T>(q, q, cos, sin, eps, q_out);
    turn<T>(q, k, cos, sin, eps, k_out);
  });
  return {q_out, k_out};
}

std::tuple<Tensor, Tensor> backward(const Tensor& dq_out, const Tensor& dk_out, const Tensor& q, const Tensor& k,
                                    const Tensor& cos, const Tensor& sin, double eps) {
  Tensor dq = torch::stable::new_empty(q, q.sizes()), dk = torch::stable::new_empty(k, k.sizes());
  dispatch_float(q.scalar_type(), "qk_norm_rope", [&]<typename T>() {
    turn_back<T>(dq_out, q, q, cos, sin, eps, dq);
    turn_back<T>(dk_out, q, k, cos, sin, eps, dk);
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
