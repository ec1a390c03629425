// One query at a time, with its scores in a row that the thread keeps (thread_local); the backward forms them again for every query.
//
// Odd: no tiles and no online softmax, dots of one row with one row. Right: keys outside the band are never read; a thread has a whole key head, so that
// dk and dv are summed by nobody else.
#include "lab.h"

namespace {

template <typename T>
struct Rows {
  T* data;
  int64_t batch, head, row, column;  // strides

  T* at(int64_t b, int64_t h, int64_t t) const { return data + b * batch + h * head + t * row; }
};

template <typename T>
Rows<const T> rows(const Tensor& x) { return {reads<T>(x), x.stride(0), x.stride(1), x.stride(2), x.stride(3)}; }

struct Band {
  int64_t before, after, T;

  Band(int64_t T, bool causal, std::optional<int64_t> window) : before(window ? std::min(*window - 1, T) : T), after(causal ? 0 : before), T(T) {}
  int64_t first(int64_t i) const { return std::max<int64_t>(0, i - before); }
  int64_t last(int64_t i) const { return std::min(T, i + after + 1); }
};

float* kept(int64_t floats) {
  thread_local std::vector<float> memory;
  if (memory.size() < static_cast<size_t>(floats)) memory.resize(static_cast<size_t>(floats));
  return memory.data();
}

template <typename T>
float dot(const T* a, int64_t stride_a, const T* b, int64_t stride_b, int64_t D) {
  float sum = 0.f;
  for (int64_t d = 0; d < D; ++d) sum += load(a + d * stride_a) * load(b + d * stride_b);
  return sum;
}

std::tuple<Tensor, Tensor> forward(const Tensor& q, const Tensor& k, const Tensor& v, bool causal, std::optional<int64_t> window) {
  const int64_t B = q.size(0), H = q.size(1), T = q.size(2), D = q.size(3), group = H / k.size(1);
  const Band band(T, causal, window);
  const float scale = 1.f / std::sqrt(static_cast<float>(D));
  Tensor o = torch::stable::empty_like(q), lse = torch::stable::new_empty(q, {B, H, T}, ScalarType::Float);
  dispatch_float(q.scalar_type(), "attention", [&]<typename S>() {
    const auto Q = rows<S>(q), K = rows<S>(k), V = rows<S>(v);
    const Rows<S> O{writes<S>(o), o.stride(0), o.stride(1), o.stride(2), o.stride(3)};
    torch::stable::parallel_for(0, B * H * T, 16, [&](int64_t begin, int64_t end) {
      float* const p = kept(T + D);
      float* const sum_v = p + T;
      for (int64_t n = begin; n < end; ++n) {
        const int64_t b = n / T / H, h = n / T % H, i = n % T;
        float top = -std::numeric_limits<float>::infinity(), sum = 0.f;
        for (int64_t j = band.first(i); j < band.last(i); ++j) {
          p[j] = scale * dot(Q.at(b, h, i), Q.column, K.at(b, h / group, j), K.column, D);
          top = std::max(top, p[j]);
        }
        std::fill_n(sum_v, D, 0.f);
        for (int64_t j = band.first(i); j < band.last(i); ++j) {
          const float e = fast_exp(p[j] - top);
          sum += e;
          for (int64_t d = 0; d < D; ++d) sum_v[d] += e * load(V.at(b, h / group, j) + d * V.column);
        }
        for (int64_t d = 0; d < D; ++d) store(O.at(b, h, i) + d * O.column, sum_v[d] / sum);
        writes<float>(lse)[n] = top + std::log(sum);
      }
    });
  });
  return {o, lse};
}

std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& d_o, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& o,
                                            const Tensor& lse, bool causal, std::optional<int64_t> window) {
  const int64_t B = q.size(0), H = q.size(1), Hk = k.size(1), T = q.size(2), D = q.size(3), group = H / Hk;
  const Band band(T, causal, window);
  const float scale = 1.f / std::sqrt(static_cast<float>(D));
  Tensor dq = torch::stable::empty_like(q), dk = torch::stable::empty_like(k), dv = torch::stable::empty_like(v);
  dispatch_float(q.scalar_type(), "attention", [&]<typename S>() {
    const auto Q = rows<S>(q), K = rows<S>(k), V = rows<S>(v), O = rows<S>(o), G = rows<S>(d_o);
    const auto write = [&](Tensor& to, int64_t b, int64_t h, int64_t t, const float* from, float factor) {
      S* row = writes<S>(to) + b * to.stride(0) + h * to.stride(1) + t * to.stride(2);
      for (int64_t d = 0; d < D; ++d) store(row + d * to.stride(3), factor * from[d]);
    };
    torch::stable::parallel_for(0, B * Hk, 1, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        const int64_t b = n / Hk, hk = n % Hk;
        float *const sum_k = kept(2 * T * D + D), *const sum_v = sum_k + T * D, *const sum_q = sum_v + T * D;
        std::fill_n(sum_k, 2 * T * D, 0.f);
        for (int64_t h = hk * group; h < (hk + 1) * group; ++h)
          for (int64_t i = 0; i < T; ++i) {
            const S *x = Q.at(b, h, i), *g = G.at(b, h, i);
            const float delta = dot(g, G.column, O.at(b, h, i), O.column, D), row_lse = reads<float>(lse)[(b * H + h) * T + i];
            std::fill_n(sum_q, D, 0.f);
            for (int64_t j = band.first(i); j < band.last(i); ++j) {
              const S* y = K.at(b, hk, j);
              const float p = fast_exp(scale * dot(x, Q.column, y, K.column, D) - row_lse);
              const float ds = p * (dot(g, G.column, V.at(b, hk, j), V.column, D) - delta);
              for (int64_t d = 0; d < D; ++d) {
                sum_q[d] += ds * load(y + d * K.column);
                sum_k[j * D + d] += ds * load(x + d * Q.column);
                sum_v[j * D + d] += p * load(g + d * G.column);
              }
            }
            write(dq, b, h, i, sum_q, scale);
          }
        for (int64_t t = 0; t < T; ++t) write(dk, b, hk, t, sum_k + t * D, scale);
        for (int64_t t = 0; t < T; ++t) write(dv, b, hk, t, sum_v + t * D, 1.f);
      }
    });
  });
  return {dq, dk, dv};
}

}  // namespace

LAB_SCHEMAS(m) {
  m.def("forward(Tensor q, Tensor k, Tensor v, bool causal, int? window) -> (Tensor o, Tensor lse)");
  m.def(
      "backward(Tensor d_o, Tensor q, Tensor k, Tensor v, Tensor o, Tensor lse, bool causal, int? window)"
      " -> (Tensor dq, Tensor dk, Tensor dv)");
}

LAB_KERNELS(CPU, m) {
  m.impl("forward", TORCH_BOX(&forward));
  m.impl("backward", TORCH_BOX(&backward));
}
