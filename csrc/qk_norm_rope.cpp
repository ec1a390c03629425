// RMSNorm of every head of queries and keys, then rotary embedding, in one pass: a row x of D channels becomes
//
//   n = x / sqrt(mean(x^2) + eps)      y[i] = n[i] c[i] - n[i + D/2] s[i]      y[i + D/2] = n[i + D/2] c[i] + n[i] s[i]
//
// with c and s the cos and sin of its position. Backward turns dy back, g = R^T dy, and then is RMSNorm's:
//
//   dx = rstd (g - x rstd^2 mean(g x))
//
// Bound: memory. Forward reads and writes q and k once, backward reads dy and x and writes dx. rstd is not kept: both sums of backward,
// that of x^2 and that of g x, come from one reading of the row. Where a composition of torch's functions makes normalised, rotated and
// concatenated copies, a row here (128 B to 512 B) stays in registers and L1. For short rows the bound is the arithmetic all the same: the
// rows of the usual heads, D a multiple of 64 in float32 or bfloat16, are written out in vectors (lanes.h), twice as fast.
//
// q and k may be views of a packed projection: rows are read where they lie, at any distance from each other.
#include "lanes.h"

namespace {

constexpr int64_t kGrain = 1 << 14;  // tune: 4096 16384 65536
// Elements a thread takes at least: below it waking the pool (about 5 us) costs more than the rows.

// The cos and sin of a position, D/2 each.
struct Turn {
  const float *cos, *sin;
};

// ---- a row: any type and any D ----

template <typename T>
void row_forward(const T* x, Turn turn, T* y, int64_t half, float eps) {
  const int64_t D = 2 * half;
  float squares = 0.f;
#pragma omp simd reduction(+ : squares)
  for (int64_t i = 0; i < D; ++i) squares += load(x + i) * load(x + i);
  const float rstd = 1.f / std::sqrt(squares / static_cast<float>(D) + eps);
#pragma omp simd
  for (int64_t i = 0; i < half; ++i) {
    const float a = load(x + i) * rstd, b = load(x + half + i) * rstd;
    store(y + i, a * turn.cos[i] - b * turn.sin[i]);
    store(y + half + i, b * turn.cos[i] + a * turn.sin[i]);
  }
}

template <typename T>
void row_backward(const T* dy, const T* x, Turn turn, T* dx, int64_t half, float eps) {
  const float D = static_cast<float>(2 * half);
  float squares = 0.f, dot = 0.f;
#pragma omp simd reduction(+ : squares, dot)
  for (int64_t i = 0; i < half; ++i) {
    const float da = load(dy + i), db = load(dy + half + i), a = load(x + i), b = load(x + half + i);
    squares += a * a + b * b;
    dot += a * (da * turn.cos[i] + db * turn.sin[i]) + b * (db * turn.cos[i] - da * turn.sin[i]);
  }
  const float rstd = 1.f / std::sqrt(squares / D + eps), c = dot * rstd * rstd / D;
#pragma omp simd
  for (int64_t i = 0; i < half; ++i) {
    const float da = load(dy + i), db = load(dy + half + i);
    store(dx + i, rstd * (da * turn.cos[i] + db * turn.sin[i] - load(x + i) * c));
    store(dx + half + i, rstd * (db * turn.cos[i] - da * turn.sin[i] - load(x + half + i) * c));
  }
}

// ---- a row of whole blocks of vectors: float or bf16, D/2 a multiple of kBlock, `turn` arranged as the row is ----

template <typename T>
void block_row_forward(const T* x, Turn turn, T* y, int64_t half, float eps) {
  Pair squares{};
  for (int64_t i = 0; i < 2 * half; i += kBlock) {
    const Pair v = load_pair(x + i);
    squares = squares + v * v;
  }
  const float rstd = 1.f / std::sqrt(sum_of(squares) / static_cast<float>(2 * half) + eps);
  for (int64_t i = 0; i < half; i += kBlock) {
    const Pair a = load_pair(x + i) * rstd, b = load_pair(x + half + i) * rstd;
    const Pair cos = load_pair(turn.cos + i), sin = load_pair(turn.sin + i);
    store_pair(y + i, a * cos - b * sin);
    store_pair(y + half + i, b * cos + a * sin);
  }
}

template <typename T>
void block_row_backward(const T* dy, const T* x, Turn turn, T* dx, int64_t half, float eps) {
  const float D = static_cast<float>(2 * half);
  Pair squares{}, dot{};
  for (int64_t i = 0; i < half; i += kBlock) {
    const Pair da = load_pair(dy + i), db = load_pair(dy + half + i), a = load_pair(x + i), b = load_pair(x + half + i);
    const Pair cos = load_pair(turn.cos + i), sin = load_pair(turn.sin + i);
    squares = squares + a * a + b * b;
    dot = dot + a * (da * cos + db * sin) + b * (db * cos - da * sin);
  }
  const float rstd = 1.f / std::sqrt(sum_of(squares) / D + eps), c = sum_of(dot) * rstd * rstd / D;
  for (int64_t i = 0; i < half; i += kBlock) {
    const Pair da = load_pair(dy + i), db = load_pair(dy + half + i);
    const Pair cos = load_pair(turn.cos + i), sin = load_pair(turn.sin + i);
    store_pair(dx + i, (da * cos + db * sin - load_pair(x + i) * c) * rstd);
    store_pair(dx + half + i, (db * cos - da * sin - load_pair(x + half + i) * c) * rstd);
  }
}

// ---- all rows ----

template <typename T>
constexpr bool kInBlocks = !std::is_same_v<T, fp16>;

template <typename T>
void forward_row(const T* x, Turn turn, T* y, int64_t half, float eps) {
  if constexpr (kInBlocks<T>)
    if (half % kBlock == 0) return block_row_forward(x, turn, y, half, eps);
  row_forward(x, turn, y, half, eps);
}

template <typename T>
void backward_row(const T* dy, const T* x, Turn turn, T* dx, int64_t half, float eps) {
  if constexpr (kInBlocks<T>)
    if (half % kBlock == 0) return block_row_backward(dy, x, turn, dx, half, eps);
  row_backward(dy, x, turn, dx, half, eps);
}

// The turn as rows of T want it: itself, or rearranged in `buffer` (D floats).
template <typename T>
Turn arranged(Turn turn, float* buffer, int64_t half) {
  if constexpr (kInBlocks<T>)
    if (half % kBlock == 0) return {arrange<T>(turn.cos, buffer, half), arrange<T>(turn.sin, buffer + half, half)};
  return turn;
}

// A tensor (B, T, H, D) with contiguous rows.
template <typename T>
struct Heads {
  T* data;
  int64_t batch, time, head;  // strides
  T* at(int64_t b, int64_t t, int64_t h) const { return data + b * batch + t * time + h * head; }
};

template <typename T>
Heads<const T> heads(const Tensor& x) {
  return {reads<T>(x), x.stride(0), x.stride(1), x.stride(2)};
}
template <typename T>
Heads<T> heads(Tensor& x) {
  return {writes<T>(x), x.stride(0), x.stride(1), x.stride(2)};
}

// Calls each(b, t, turn) for every token of q (B, T, H, D) and k (B, T, Hk, D), whose rows are of type T, in parallel.
template <typename T, typename Each>
void for_each_token(const Tensor& q, const Tensor& k, const Tensor& cos, const Tensor& sin, Each&& each) {
  const int64_t B = q.size(0), tokens = q.size(1), D = q.size(3), half = D / 2;
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, (q.size(2) + k.size(2)) * D));
  const float *c = reads<float>(cos), *s = reads<float>(sin);
  torch::stable::parallel_for(0, B * tokens, grain, [&](int64_t begin, int64_t end) {
    std::vector<float> buffer(static_cast<size_t>(D));
    for (int64_t i = begin; i < end; ++i) {
      const int64_t t = i % tokens;
      each(i / tokens, t, arranged<T>({c + t * half, s + t * half}, buffer.data(), half));
    }
  });
}

void check(const char* name, const Tensor& x, const Tensor& q) {
  STD_TORCH_CHECK(x.dim() == 4 && x.size(0) == q.size(0) && x.size(1) == q.size(1) && x.size(3) == q.size(3) && x.size(3) % 2 == 0,
                  "qk_norm_rope ", name, ": expected (B, T, H, D) with an even D and the B, T and D of q");
  STD_TORCH_CHECK(x.stride(3) == 1 || x.numel() == 0, "qk_norm_rope ", name, ": expected rows without gaps, got stride ", x.stride(3));
  STD_TORCH_CHECK(x.scalar_type() == q.scalar_type(), "qk_norm_rope ", name, ": expected the type of q");
}
void check_table(const char* name, const Tensor& table, const Tensor& q) {
  STD_TORCH_CHECK(table.dim() == 2 && table.is_contiguous() && table.scalar_type() == ScalarType::Float &&
                      table.size(0) == q.size(1) && table.size(1) == q.size(3) / 2,
                  "qk_norm_rope ", name, ": expected contiguous float32 (T, D/2) = (", q.size(1), ", ", q.size(3) / 2, ")");
}

// q (B, T, H, D), k (B, T, Hk, D), rows without gaps; cos, sin (T, D/2) contiguous float32 -> q', k' contiguous
std::tuple<Tensor, Tensor> forward(const Tensor& q, const Tensor& k, const Tensor& cos, const Tensor& sin, double eps) {
  check("q", q, q), check("k", k, q), check_table("cos", cos, q), check_table("sin", sin, q);
  Tensor q_out = torch::stable::new_empty(q, q.sizes()), k_out = torch::stable::new_empty(k, k.sizes());
  const int64_t H = q.size(2), Hk = k.size(2), half = q.size(3) / 2;
  const float e = static_cast<float>(eps);
  dispatch_float(q.scalar_type(), "qk_norm_rope", [&]<typename T>() {
    const auto from_q = heads<T>(q), from_k = heads<T>(k);
    const Heads<T> to_q = heads<T>(q_out), to_k = heads<T>(k_out);
    for_each_token<T>(q, k, cos, sin, [&](int64_t b, int64_t t, Turn turn) {
      for (int64_t h = 0; h < H; ++h) forward_row(from_q.at(b, t, h), turn, to_q.at(b, t, h), half, e);
      for (int64_t h = 0; h < Hk; ++h) forward_row(from_k.at(b, t, h), turn, to_k.at(b, t, h), half, e);
    });
  });
  return {q_out, k_out};
}

// dq_out, q (B, T, H, D), dk_out, k (B, T, Hk, D) as in forward -> dq, dk contiguous
std::tuple<Tensor, Tensor> backward(const Tensor& dq_out, const Tensor& dk_out, const Tensor& q, const Tensor& k,
                                    const Tensor& cos, const Tensor& sin, double eps) {
  check("q", q, q), check("k", k, q), check_table("cos", cos, q), check_table("sin", sin, q);
  check("dq", dq_out, q), check("dk", dk_out, q);
  STD_TORCH_CHECK(dq_out.size(2) == q.size(2) && dk_out.size(2) == k.size(2), "qk_norm_rope: expected gradients with the heads of q and k");
  Tensor dq = torch::stable::new_empty(q, q.sizes()), dk = torch::stable::new_empty(k, k.sizes());
  const int64_t H = q.size(2), Hk = k.size(2), half = q.size(3) / 2;
  const float e = static_cast<float>(eps);
  dispatch_float(q.scalar_type(), "qk_norm_rope", [&]<typename T>() {
    const auto from_q = heads<T>(q), from_k = heads<T>(k), up_q = heads<T>(dq_out), up_k = heads<T>(dk_out);
    const Heads<T> to_q = heads<T>(dq), to_k = heads<T>(dk);
    for_each_token<T>(q, k, cos, sin, [&](int64_t b, int64_t t, Turn turn) {
      for (int64_t h = 0; h < H; ++h) backward_row(up_q.at(b, t, h), from_q.at(b, t, h), turn, to_q.at(b, t, h), half, e);
      for (int64_t h = 0; h < Hk; ++h) backward_row(up_k.at(b, t, h), from_k.at(b, t, h), turn, to_k.at(b, t, h), half, e);
    });
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
