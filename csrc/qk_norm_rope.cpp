// RMSNorm of every head of queries and keys, then rotary embedding, in one pass: a row x of D channels becomes
//
//   n = x / sqrt(mean(x^2) + eps)      y[i] = n[i] c[i] - n[i + D/2] s[i]      y[i + D/2] = n[i + D/2] c[i] + n[i] s[i]
//
// where c and s are the cos and sin of its position. Backward turns dy back, g = R^T dy, and then does what RMSNorm's does:
//
//   dx = rstd (g - x rstd^2 mean(g x))
//
// Bound: memory. Forward reads and writes q and k once, backward reads dy and x and writes dx. rstd is not kept: both sums of backward,
// that of x^2 and that of g x, come from one reading of the row. Where a composition of torch's functions makes normalised, rotated and
// concatenated copies, a row here (128 B to 512 B) stays in registers and L1. Rows as short as those of the usual heads are bound by arithmetic
// all the same: written out in vectors (lanes.h) they are twice as fast.
//
// q and k may be views of a packed projection: rows are read where they lie, at any distance from each other.
#include "lanes.h"

namespace {

// Elements that a thread takes at least: below that, waking the pool (about 5 us) costs more than the rows.
constexpr int64_t kGrain = 1 << 14;  // tune: 4096 16384 65536

// The cos and sin of a position, D/2 of each, in the order of the rows' lanes (lanes.h).
struct Turn {
  const float *cos, *sin;
};

// kTail: D/2 is no multiple of kBlock.
template <bool kTail, typename T>
void row_forward(const T* x, Turn turn, T* y, int64_t half, float eps) {
  Pair squares{};
  for_each_block<kTail>(2 * half, [&](int64_t, auto read, auto) { squares = squares + read(x) * read(x); });
  const float rstd = 1.f / std::sqrt(sum_of(squares) / static_cast<float>(2 * half) + eps);
  for_each_block<kTail>(half, [&](int64_t i, auto read, auto write) {
    const Pair a = read(x) * rstd, b = read(x + half) * rstd, cos = load_pair(turn.cos + i), sin = load_pair(turn.sin + i);
    write(y, a * cos - b * sin);
    write(y + half, b * cos + a * sin);
  });
}

template <bool kTail, typename T>
void row_backward(const T* dy, const T* x, Turn turn, T* dx, int64_t half, float eps) {
  const float D = static_cast<float>(2 * half);
  Pair squares{}, dot{};
  for_each_block<kTail>(half, [&](int64_t i, auto read, auto) {
    const Pair da = read(dy), db = read(dy + half), a = read(x), b = read(x + half);
    const Pair cos = load_pair(turn.cos + i), sin = load_pair(turn.sin + i);
    squares = squares + a * a + b * b;
    dot = dot + a * (da * cos + db * sin) + b * (db * cos - da * sin);
  });
  const float rstd = 1.f / std::sqrt(sum_of(squares) / D + eps), c = sum_of(dot) * rstd * rstd / D;
  for_each_block<kTail>(half, [&](int64_t i, auto read, auto write) {
    const Pair da = read(dy), db = read(dy + half), cos = load_pair(turn.cos + i), sin = load_pair(turn.sin + i);
    write(dx, (da * cos + db * sin - read(x) * c) * rstd);
    write(dx + half, (db * cos - da * sin - read(x + half) * c) * rstd);
  });
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

// Calls each<kTail>(b, t, turn) for every token of q (B, T, H, D) and k (B, T, Hk, D), whose rows are of type T, in parallel.
template <typename T, typename Each>
void for_each_token(const Tensor& q, const Tensor& k, const Tensor& cos, const Tensor& sin, Each&& each) {
  const int64_t B = q.size(0), tokens = q.size(1), D = q.size(3), half = D / 2, width = whole_blocks(half);
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, (q.size(2) + k.size(2)) * D));
  const float *c = reads<float>(cos), *s = reads<float>(sin);
  torch::stable::parallel_for(0, B * tokens, grain, [&](int64_t begin, int64_t end) {
    std::vector<float> turned(static_cast<size_t>(2 * width));
    for (int64_t i = begin; i < end; ++i) {
      const int64_t t = i % tokens;
      const Turn turn{arrange<T>(c + t * half, turned.data(), half), arrange<T>(s + t * half, turned.data() + width, half)};
      if (half == width) each.template operator()<false>(i / tokens, t, turn);
      else each.template operator()<true>(i / tokens, t, turn);
    }
  });
}

void check(const char* name, const Tensor& x, const Tensor& q) {
  STD_TORCH_CHECK(x.dim() == 4 && x.size(0) == q.size(0) && x.size(1) == q.size(1) && x.size(3) == q.size(3) && x.size(3) % 2 == 0,
                  "qk_norm_rope ", name, ": expected (B, T, H, D) with an even D and the B, T and D of q, ", describe(q), ", got ", describe(x));
  STD_TORCH_CHECK(x.stride(3) == 1 || x.numel() == 0, "qk_norm_rope ", name, ": expected rows without gaps, got ", describe(x));
  STD_TORCH_CHECK(x.scalar_type() == q.scalar_type(), "qk_norm_rope ", name, ": expected the type of q, ", q.scalar_type(), ", got ", x.scalar_type());
}
void check_table(const char* name, const Tensor& table, const Tensor& q) {
  STD_TORCH_CHECK(table.dim() == 2 && table.is_contiguous() && table.scalar_type() == ScalarType::Float &&
                      table.size(0) == q.size(1) && table.size(1) == q.size(3) / 2,
                  "qk_norm_rope ", name, ": expected a contiguous float32 (T, D/2) = (", q.size(1), ", ", q.size(3) / 2, "), got ", describe(table));
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
    for_each_token<T>(q, k, cos, sin, [&]<bool kTail>(int64_t b, int64_t t, Turn turn) {
      for (int64_t h = 0; h < H; ++h) row_forward<kTail>(from_q.at(b, t, h), turn, to_q.at(b, t, h), half, e);
      for (int64_t h = 0; h < Hk; ++h) row_forward<kTail>(from_k.at(b, t, h), turn, to_k.at(b, t, h), half, e);
    });
  });
  return {q_out, k_out};
}

// dq_out, q (B, T, H, D), dk_out, k (B, T, Hk, D) as in forward -> dq, dk contiguous
std::tuple<Tensor, Tensor> backward(const Tensor& dq_out, const Tensor& dk_out, const Tensor& q, const Tensor& k,
                                    const Tensor& cos, const Tensor& sin, double eps) {
  check("q", q, q), check("k", k, q), check_table("cos", cos, q), check_table("sin", sin, q);
  check("dq", dq_out, q), check("dk", dk_out, q);
  STD_TORCH_CHECK(dq_out.size(2) == q.size(2) && dk_out.size(2) == k.size(2), "qk_norm_rope: expected dq and dk with the heads of q and k, ",
                  q.size(2), " and ", k.size(2), ", got ", dq_out.size(2), " and ", dk_out.size(2));
  Tensor dq = torch::stable::new_empty(q, q.sizes()), dk = torch::stable::new_empty(k, k.sizes());
  const int64_t H = q.size(2), Hk = k.size(2), half = q.size(3) / 2;
  const float e = static_cast<float>(eps);
  dispatch_float(q.scalar_type(), "qk_norm_rope", [&]<typename T>() {
    const auto from_q = heads<T>(q), from_k = heads<T>(k), up_q = heads<T>(dq_out), up_k = heads<T>(dk_out);
    const Heads<T> to_q = heads<T>(dq), to_k = heads<T>(dk);
    for_each_token<T>(q, k, cos, sin, [&]<bool kTail>(int64_t b, int64_t t, Turn turn) {
      for (int64_t h = 0; h < H; ++h) row_backward<kTail>(up_q.at(b, t, h), from_q.at(b, t, h), turn, to_q.at(b, t, h), half, e);
      for (int64_t h = 0; h < Hk; ++h) row_backward<kTail>(up_k.at(b, t, h), from_k.at(b, t, h), turn, to_k.at(b, t, h), half, e);
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
