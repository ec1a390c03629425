// Attention on the CPU: o = softmax(q k^T / sqrt(D) + mask) v, tile by tile, so that no (T, T) matrix is ever in memory
// (Dao et al. 2022, arXiv 2205.14135; the online softmax is Milakov & Gimelshein 2018, arXiv 1805.02867).
//
// A tile is kQueries x kKeys scores. It is held transposed, one key a row and one query a lane: the maximum and the sum over
// keys are then plain vector code without a horizontal step, and in float32 all six products of forward and backward read K, V, Q and dO
// as they lie in memory; only the tile of queries (backward: of dO too) is transposed, once for all its keys.
//
//     forward    S' = K Q'        O  += P V
//     backward   S' = K Q'        dP' = V dO'       dV += P' dO       dK += dS' Q       dQ += dS K
//
// Bound: arithmetic, 4 B H D flops a visible (query, key) pair forward and 10 backward (causal: about T^2 / 2 pairs, windowed:
// T w). Tiles outside the band of visible pairs are not touched, and on the band's edge the products skip what is masked in
// steps of kHeight. One Zen 5 core, float32, causal: 122 GFLOP/s forward and 137 backward at T 512, D 64 (torch's SDPA: 38 and 39),
// 152 and 171 at T 1024, D 128.
//
// fp16 is widened as a tile is copied in, and so is bf16 where the processor has no products of pairs (pairs.h); there the arithmetic is
// float32 throughout. Where it has them, E below is bf16 and not float: tiles stay bf16, P and dS are rounded to it, and K, V, Q and dO are zipped
// for a sum over their rows. Sums are float32; what has channels for columns (O, dQ, dK, dV) has them as `zipped` leaves them until it is written.
//
// Where it has AMX, such products go by squares of 32 x 32 (tiles.h). Their left factor has the terms of a sum side by side, and a tile of scores has
// its queries so. In a sum over keys it is therefore the right factor, and O and dQ are made transposed, O' += V' P' and dQ' += K' dS', from a
// transpose of each tile of V and K. Two cores of a Xeon, ms forward and backward at B 4, H 3, T 512, D 64: window 64 1.8 and 4.6 -> 0.7 and 1.6,
// causal 5.4 and 13.3 -> 1.5 and 3.1.
#include "tiles.h"

#include <memory>
#include <new>
#include <utility>

namespace {

// A product by vectors keeps kRows x kVectors vectors of sums in registers: 16 of AVX-512's 32, 8 of AVX2's 16. That is enough to hide the
// latency of two multiply-adds a cycle, and takes 10 loads for 16 of them. A tile of scores is 16 KB: two stay in L1.
#if defined(__AVX512F__)
constexpr int kRows = 8;  // tune on avx512: 4 8
#else
constexpr int kRows = 4;  // tune on avx2: 2 4
#endif
constexpr int kVectors = 2;   // tune: 1 2 4
constexpr int kQueries = 64;  // tune: 32 64 128
constexpr int kKeys = 64;     // tune: 32 64 128
static_assert(kQueries % (kVectors * kLanes) == 0 && kQueries % kRows == 0 && kKeys % kRows == 0);
// Rows that a product takes at a time, of which a tile has a multiple.
template <typename E>
constexpr int kHeight = kTiled<E> ? kSide : kRows;
static_assert(!kTiled<bf16> || (kQueries % kSide == 0 && kKeys % kSide == 0));

// ---- products ----

// A block of a product, kRows x (kN * kLanes): C[m, n] (+)= sum of A[m, k] B[k, n] over the steps k. 32 bits of A or B hold the terms of a step.
// A is stored (m, k), or (k, m) if kTransposed.
template <typename E, bool kTransposed, bool kAdd, int kN>
inline void block(int64_t steps, const float* A, int64_t lda, const float* B, int64_t ldb, float* C, int64_t ldc) {
  floats sum[kRows][kN] = {};
  for (int64_t k = 0; k < steps; ++k) {
    floats b[kN];
#pragma GCC unroll 8
    for (int n = 0; n < kN; ++n) b[n] = *reinterpret_cast<const unaligned_floats*>(B + k * ldb + n * kLanes);
#pragma GCC unroll 16
    for (int m = 0; m < kRows; ++m) {
      const float* a = kTransposed ? A + k * lda + m : A + m * lda + k;
#pragma GCC unroll 8
      for (int n = 0; n < kN; ++n) sum[m][n] = add_products<E>(sum[m][n], a, b[n]);
    }
  }
#pragma GCC unroll 16
  for (int m = 0; m < kRows; ++m)
#pragma GCC unroll 8
    for (int n = 0; n < kN; ++n) {
      auto* c = reinterpret_cast<unaligned_floats*>(C + m * ldc + n * kLanes);
      *c = kAdd ? *c + sum[m][n] : sum[m][n];
    }
}

struct Range {
  int64_t begin, end;
};

// C (M, N) = A B, of each block of rows for the columns within columns(m, m + kHeight); other columns may hold anything.
template <typename E, typename Columns>
void product(int64_t M, int64_t N, int64_t steps, const float* A, int64_t lda, const float* B, int64_t ldb, float* C, int64_t ldc,
             Columns columns) {
  if constexpr (kTiled<E>) {
    for (int64_t m = 0; m < M; m += kSide) {
      const Range r = columns(m, m + kSide);
      for (int64_t n = r.begin / kSide * kSide; n < r.end; n += kSide)
        sum_square(A + m * lda, lda, B + n, ldb, steps, C + m * ldc + n, ldc, false);
    }
    return;
  }
  constexpr int64_t kStep = kVectors * kLanes;
  for (int64_t n = 0; n < N; n += kStep)
    for (int64_t m = 0; m < M; m += kRows) {
      const Range r = columns(m, m + kRows);
      const int64_t begin = std::max(n, r.begin / kLanes * kLanes), end = std::min(n + kStep, round_up(r.end, kLanes));
      if (end - begin == kStep)
        block<E, false, false, kVectors>(steps, A + m * lda, lda, B + n, ldb, C + m * ldc + n, ldc);
      else  // the band's edge
        for (int64_t i = begin; i < end; i += kLanes)
          block<E, false, false, 1>(steps, A + m * lda, lda, B + i, ldb, C + m * ldc + i, ldc);
    }
}

// C (M, N) += A B, where rows [m, m + kRows) sum over the terms within terms(m, m + kRows): A counts as zero outside of them. In the half of a step
// that reaches beyond them A or B must be zero, and the other finite: behind an odd number of queries P is 1, and it is dO that is zero.
template <typename E, bool kTransposed, typename Terms>
void accumulate(int64_t M, int64_t N, const float* A, int64_t lda, const float* B, int64_t ldb, float* C, int64_t ldc,
                Terms terms) {
  constexpr int64_t kStep = kVectors * kLanes;
  for (int64_t n = 0; n < N;) {
    const bool wide = n + kStep <= N;
    for (int64_t m = 0; m < M; m += kRows) {
      const Range r = terms(m, m + kRows);
      if (r.begin >= r.end) continue;
      const int64_t begin = r.begin / kTerms<E>, steps = steps_of<E>(r.end) - begin;
      const float* a = kTransposed ? A + begin * lda + m : A + m * lda + begin;
      const float* b = B + begin * ldb + n;
      float* c = C + m * ldc + n;
      if (wide) block<E, kTransposed, true, kVectors>(steps, a, lda, b, ldb, c, ldc);
      else block<E, kTransposed, true, 1>(steps, a, lda, b, ldb, c, ldc);
    }
    n += wide ? kStep : kLanes;
  }
}

// The same by squares of AMX: those of rows m and columns n sum over the terms within terms(m, n), rounded to whole squares: there A or B must be
// zero, and the other finite.
template <typename Terms>
void accumulate_squares(int64_t M, int64_t N, const float* A, int64_t lda, const float* B, int64_t ldb, float* C, int64_t ldc, Terms terms) {
  for (int64_t m = 0; m < M; m += kSide)
    for (int64_t n = 0; n < N; n += kSide) {
      const Range r = terms(m, n);
      if (r.begin >= r.end) continue;
      const int64_t begin = r.begin / kSide * kTileSteps, end = ceil_div(r.end, kSide) * kTileSteps;
      sum_square(A + m * lda + begin, lda, B + begin * ldb + n, ldb, end - begin, C + m * ldc + n, ldc, true);
    }
}

// ---- which pairs are visible ----

// Query i sees key j if i - before <= j <= i + after.
struct Band {
  int64_t before, after, T;

  Band(int64_t T, bool causal, std::optional<int64_t> window) : T(T) {
    const int64_t reach = window ? std::min(*window - 1, T) : T;
    before = reach;
    after = causal ? 0 : reach;
  }
  template <typename E>
  Range keys_of(int64_t q0, int64_t queries) const {
    // from a multiple of kHeight on, so that a tile has whole blocks of rows and need not be copied
    return {std::max<int64_t>(0, q0 - before) / kHeight<E> * kHeight<E>, std::min(T, q0 + queries + after)};
  }
};

// The band as the tile at (q0, k0) sees it, in the tile's own indices.
struct TileBand {
  int64_t before, after, queries, keys, shift;  // i - j of the tile's first pair

  TileBand(const Band& band, int64_t q0, int64_t queries, int64_t k0, int64_t keys)
      : before(band.before), after(band.after), queries(queries), keys(keys), shift(q0 - k0) {}
  bool whole() const { return shift + queries - 1 <= before && keys - 1 - shift <= after; }
  // v in the lanes of the queries i0, i0 + 1, ... that see key j, `hidden` in the others.
  Pair masked(Pair v, int64_t i0, int64_t j, float hidden) const {
    // one comparison for both ends: below -after a distance is a large number
    const words distance = lane_numbers() + static_cast<uint32_t>(shift + i0 - j + after);
    const uint32_t last = static_cast<uint32_t>(before + after);
    const floats others = floats{} + hidden;
    return {distance <= last ? v.even : others, distance + kLanes <= last ? v.odd : others};
  }
  Range keys_of(int64_t i0, int64_t i1) const {
    return {std::max<int64_t>(0, shift + i0 - before), std::min(keys, shift + i1 + after)};
  }
  Range queries_of(int64_t j0, int64_t j1) const {
    return {std::max<int64_t>(0, j0 - shift - after), std::min(queries, j1 - shift + before)};
  }
};

// ---- tiles in and out of memory ----

// One (T, D) matrix of a tensor (B, H, T, D), any strides.
template <typename T>
struct Matrix {
  T* data;
  int64_t row, column;  // strides
};

template <typename T>
struct Heads {
  T* data;
  int64_t batch, head, row, column;  // strides

  Matrix<T> at(int64_t b, int64_t h) const { return {data + b * batch + h * head, row, column}; }
};

template <typename T>
Heads<const T> heads(const Tensor& x) {
  return {reads<T>(x), x.stride(0), x.stride(1), x.stride(2), x.stride(3)};
}
template <typename T>
Heads<T> heads(Tensor& x) {
  return {writes<T>(x), x.stride(0), x.stride(1), x.stride(2), x.stride(3)};
}

template <typename E, typename T>
E as(const T* p) {
  if constexpr (std::is_same_v<E, T>) return *p;
  else return load(p);
}

// Rows of E, `stride` apart.
template <typename E>
struct Rows {
  const E* data;
  int64_t stride;
};

// Rows [t, t + n) as E, with rows of zeros up to a multiple of kHeight: a copy, `width` apart, or x itself where it needs none.
template <typename E, typename T>
Rows<E> rows(Matrix<const T> x, int64_t t, int64_t n, int64_t D, int64_t width, E* copy) {
  const T* from = x.data + t * x.row;
  if constexpr (std::is_same_v<T, E>)
    if (x.column == 1 && D == width && n % kHeight<E> == 0 && x.row % kTerms<E> == 0) return {from, x.row};
  for (int64_t i = 0; i < n; ++i) {
    if (x.column == 1) {
#pragma omp simd
      for (int64_t d = 0; d < D; ++d) copy[i * width + d] = as<E>(from + i * x.row + d);
    } else {
      for (int64_t d = 0; d < D; ++d) copy[i * width + d] = as<E>(from + i * x.row + d * x.column);
    }
    std::fill(copy + i * width + D, copy + (i + 1) * width, E{});
  }
  std::fill(copy + n * width, copy + round_up(n, kHeight<E>) * width, E{});
  return {copy, width};
}

// Rows in the form of a product's left factor: the terms of a step are neighbours.
template <typename E>
Rows<float> left(Rows<E> rows) { return {reinterpret_cast<const float*>(rows.data), rows.stride / kTerms<E>}; }

// n rows in the form of its right factor, the rows of a step zipped into one: in `zips`, or where they are.
inline Rows<float> right(Rows<float> rows, int64_t, int64_t, float*) { return rows; }
inline Rows<float> right(Rows<bf16> rows, int64_t n, int64_t width, float* zips) {
  for (int64_t k = 0; k < n; k += 2) {
    const bf16* row = rows.data + k * rows.stride;
    for (int64_t d = 0; d < width; d += kBlock) store_pair(zips + k / 2 * width + d, zipped(row + d, row + rows.stride + d));
  }
  return {zips, width};
}

// columns (steps of width, kQueries) = the transpose of rows (n, width), the terms of a step together; columns from n on are zero.
template <typename E>
void transpose(Rows<E> rows, int64_t n, int64_t width, float* columns) {
  const Rows<float> from = left(rows);
  for (int64_t i0 = 0; i0 < kQueries; i0 += kLanes)
    for (int64_t d0 = 0; d0 < steps_of<E>(width); d0 += kLanes) {
      floats square[kLanes];
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i)
        square[i] = i0 + i < n ? *reinterpret_cast<const unaligned_floats*>(from.data + (i0 + i) * from.stride + d0) : floats{};
      ::transpose(square);
#pragma GCC unroll 16
      for (int d = 0; d < kLanes; ++d) *reinterpret_cast<unaligned_floats*>(columns + (d0 + d) * kQueries + i0) = square[d];
    }
}

// n rows of `width` channels, transposed into a left factor of AMX: a row of kKeys terms a channel, channels in the order of a Pair's lanes. The rows
// behind n, up to a multiple of kSide, are zeros already (`rows`).
inline void turn(Rows<bf16> rows, int64_t n, int64_t width, float* turned) {
  constexpr int64_t kRow = kKeys / 2;
  for (int64_t k = 0; k < n; k += kBlock)
    for (int64_t d = 0; d < width; d += kBlock) {
      floats even[kLanes], odd[kLanes];
      ::transpose(rows.data + k * rows.stride + d, rows.stride, even, odd);
#pragma GCC unroll 16
      for (int i = 0; i < kLanes; ++i) {
        *reinterpret_cast<unaligned_floats*>(turned + (d + i) * kRow + k / 2) = even[i];
        *reinterpret_cast<unaligned_floats*>(turned + (d + kLanes + i) * kRow + k / 2) = odd[i];
      }
    }
}

// A tile of scores, (keys, kQueries), in the form of a factor of a product that sums over `rows` keys, or over queries; zero where there is no key.
template <typename E>
const float* over_keys(const float* S, int64_t keys, int64_t rows, float* to) {
  if constexpr (kTerms<E> == 1) return S;
  for (int64_t j = 0; j < rows; j += 2)
    for (int64_t i = 0; i < kQueries; i += kLanes) {
      const auto row = [&](int64_t of) { return of < keys ? *reinterpret_cast<const unaligned_floats*>(S + of * kQueries + i) : floats{}; };
      store_pair(reinterpret_cast<bf16*>(to + j / 2 * kQueries + i), Pair{row(j), row(j + 1)});
    }
  return to;
}
template <typename E>
const float* over_queries(const float* S, int64_t keys, int64_t rows, float* to) {
  if constexpr (kTerms<E> == 1) return S;
  for (int64_t j = 0; j < rows; ++j)
    for (int64_t i = 0; i < kQueries; i += kBlock) {
      // not to_lanes: a NaN that arithmetic has made needs no mending
      const Pair p = j < keys ? load_pair(S + j * kQueries + i) : Pair{};
      store_pair(reinterpret_cast<bf16*>(to + (j * kQueries + i) / 2), Pair{picked(p.even, p.odd, kEvens), picked(p.even, p.odd, kOdds)});
    }
  return to;
}

// O and dQ, the sums over keys, have one row a query; where AMX makes them, one row a channel and one lane a query, until `upright` turns them.

// sums += S' X, of a tile of scores S (keys, kQueries) and its keys' rows of X.
template <typename E>
void add_over_keys(const float* S, const TileBand& tile, Rows<E> X, int64_t width, float* left_room, float* right_room, float* sums) {
  if constexpr (kTiled<E>) {
    turn(X, tile.keys, width, left_room);
    accumulate_squares(width, kQueries, left_room, kKeys / 2, over_keys<E>(S, tile.keys, round_up(tile.keys, kSide), right_room), kQueries, sums, kQueries,
                       [&](int64_t, int64_t i) { return tile.keys_of(i, i + kSide); });
  } else {
    const Rows<float> factor = right(X, tile.keys, width, right_room);
    accumulate<E, true>(kQueries, width, over_keys<E>(S, tile.keys, tile.keys, left_room), kQueries, factor.data, factor.stride, sums, width,
                        [&](int64_t i0, int64_t i1) { return tile.keys_of(i0, i1); });
  }
}

// sums (keys, width) += S X, of scores that `over_queries` has arranged, S (keys, row), and their queries' rows.
template <typename E, typename Terms>
void add_over_queries(int64_t keys, int64_t width, const float* S, int64_t row, Rows<float> X, float* sums, Terms terms) {
  if constexpr (kTiled<E>)
    accumulate_squares(keys, width, S, row, X.data, X.stride, sums, width, [&](int64_t j, int64_t) { return terms(j, j + kSide); });
  else accumulate<E, false>(keys, width, S, row, X.data, X.stride, sums, width, terms);
}

// Each query's sums times its factor.
template <typename E>
void scale(float* sums, int64_t width, const float* factor) {
  const int64_t rows = kTiled<E> ? width : kQueries, columns = kTiled<E> ? kQueries : width;
  for (int64_t r = 0; r < rows; ++r)
#pragma omp simd
    for (int64_t c = 0; c < columns; ++c) sums[r * columns + c] *= factor[kTiled<E> ? c : r];
}

// Such sums as rows of `width` channels, in `room` or where they are.
template <typename E>
const float* upright(const float* sums, int64_t width, float* room) {
  if constexpr (!kTiled<E>) return sums;
  for (int64_t d = 0; d < width; d += kLanes)
    for (int64_t i = 0; i < kQueries; i += kLanes) ::transpose(sums + d * kQueries + i, kQueries, room + i * width + d, width);
  return room;
}

// Rows [t, t + n) of x = factor[i] * from[i].
template <typename E, typename T, typename Factor>
void write_rows(const float* from, int64_t width, Matrix<T> x, int64_t t, int64_t n, int64_t D, Factor factor) {
  for (int64_t i = 0; i < n; ++i) {
    T* to = x.data + (t + i) * x.row;
    const float f = factor(i);
    if constexpr (kTerms<E> > 1) {
      for (int64_t d = 0; d < D; d += kBlock) {
        T block[kBlock];
        const int64_t columns = std::min<int64_t>(kBlock, D - d);
        store_pair(columns == kBlock && x.column == 1 ? to + d : block, load_pair(from + i * width + d) * f);
        if (columns < kBlock || x.column != 1)
          for (int64_t c = 0; c < columns; ++c) to[(d + c) * x.column] = block[c];
      }
    } else if (x.column == 1) {
#pragma omp simd
      for (int64_t d = 0; d < D; ++d) store(to + d, f * from[i * width + d]);
    } else {
      for (int64_t d = 0; d < D; ++d) store(to + d * x.column, f * from[i * width + d]);
    }
  }
}

// Memory of one thread for the length of a call, aligned to cache lines.
class Scratch {
 public:
  explicit Scratch(int64_t floats)
      : memory_(static_cast<float*>(::operator new(static_cast<size_t>(floats) * sizeof(float), kLine))), next_(memory_.get()) {}
  float* take(int64_t floats) { return std::exchange(next_, next_ + floats); }
  template <typename E>
  E* take_as(int64_t elements) { return reinterpret_cast<E*>(take(steps_of<E>(elements))); }

 private:
  static constexpr std::align_val_t kLine{64};
  struct Free {
    void operator()(float* p) const { ::operator delete(p, kLine); }
  };
  std::unique_ptr<float, Free> memory_;
  float* next_;
};

// ---- arguments ----

// A tensor (B, heads, T, D) like q but for its heads.
void check(const char* name, const Tensor& x, int64_t heads, const Tensor& q) {
  STD_TORCH_CHECK(x.dim() == 4 && x.size(0) == q.size(0) && x.size(1) == heads && x.size(2) == q.size(2) && x.size(3) == q.size(3) &&
                      x.scalar_type() == q.scalar_type(),
                  "attention ", name, ": expected ", heads, " heads and the B, T, D and type of q, ", describe(q), ", got ", describe(x));
}

// The arguments that forward and backward share.
void check_inputs(const Tensor& q, const Tensor& k, const Tensor& v, std::optional<int64_t> window) {
  STD_TORCH_CHECK(q.dim() == 4 && k.dim() == 4 && k.size(1) > 0 && q.size(1) % k.size(1) == 0,
                  "attention: expected q (B, H, T, D) and k (B, Hkv, T, D), Hkv dividing H, got ", describe(q), " and ", describe(k));
  check("k", k, k.size(1), q), check("v", v, k.size(1), q);
  STD_TORCH_CHECK(!window || *window >= 1, "attention: expected a window of at least 1, got ", *window);
}

// ---- types and sizes ----

// Whether tiles of x stay bf16.
bool paired(const Tensor& x) { return x.scalar_type() == ScalarType::BFloat16 && multiplies_pairs(); }

// Calls f.template operator()<T, E>() with the type that q is stored as, and the type that tiles of it hold.
template <typename F>
void dispatch(const Tensor& q, const char* op, F&& f) {
  if (paired(q)) return f.template operator()<bf16, bf16>();
  dispatch_float(q.scalar_type(), op, [&]<typename T>() { f.template operator()<T, float>(); });
}

struct Shape {
  int64_t B, H, heads_kv, T, D, width;  // width: D rounded up to whole vectors, or to Pairs of them

  Shape(const Tensor& q, const Tensor& k)
      : B(q.size(0)), H(q.size(1)), heads_kv(k.size(1)), T(q.size(2)), D(q.size(3)), width(round_up(D, paired(q) ? kBlock : kLanes)) {}
  int64_t group() const { return H / heads_kv; }
  int64_t query_tiles() const { return ceil_div(T, kQueries); }
  float scale() const { return 1.f / std::sqrt(static_cast<float>(D)); }
};

// ---- forward ----

// Turns a tile of products into P = exp(scale * product - max), zero where hidden, and brings max and sum (one a query) up to date;
// older sums must be multiplied by decay = exp(old max - new max). False if no maximum moved. It takes kBlock queries at a time,
// over the keys that one of them sees, so that maximum and sum stay in registers.
bool softmax_step(float* S, TileBand band, float scale, float* max, float* sum, float* decay) {
  constexpr float kHidden = -std::numeric_limits<float>::infinity();
  const bool whole = band.whole();
  for (int64_t i0 = 0; i0 < kQueries; i0 += kBlock) {
    const Range seen = band.keys_of(i0, i0 + kBlock);
    const Pair old = load_pair(max + i0);
    Pair top = Pair{} + kHidden;
    for (int64_t j = seen.begin; j < seen.end; ++j) {
      Pair s = load_pair(S + j * kQueries + i0);
      if (!whole) s = band.masked(s, i0, j, kHidden);
      top = {larger(s.even, top.even), larger(s.odd, top.odd)};
    }
    top = top * scale;
    top = {larger(top.even, old.even), larger(top.odd, old.odd)};
    const Pair shrink = exp_of(old - top);
    Pair total = load_pair(sum + i0) * shrink;
    for (int64_t j = 0; j < band.keys; ++j) {
      Pair p{};
      if (j >= seen.begin && j < seen.end) {
        p = exp_of(load_pair(S + j * kQueries + i0) * scale - top);
        if (!whole) p = band.masked(p, i0, j, 0.f);
        total = total + p;
      }
      store_pair(S + j * kQueries + i0, p);
    }
    store_pair(max + i0, top);
    store_pair(sum + i0, total);
    store_pair(decay + i0, shrink);
  }
  return std::any_of(decay, decay + kQueries, [](float d) { return d != 1.f; });
}

template <typename T, typename E>
void forward_tasks(const Shape& s, const Band& band, Heads<const T> q, Heads<const T> k, Heads<const T> v, Heads<T> o, float* lse,
                   int64_t begin, int64_t end) {
  const int64_t W = s.width, left_row = W / kTerms<E>, steps = steps_of<E>(kTiled<E> ? W : s.D);
  [[maybe_unused]] const Tiles<E> registers;
  const int64_t factor = kKeys * std::max<int64_t>(kQueries, W);
  Scratch scratch(kQueries * (4 * W + kKeys + 3) + 2 * kKeys * W + 2 * factor);
  E* q_copy = scratch.take_as<E>(kQueries * W);
  float* q_columns = scratch.take(kQueries * left_row);
  E* k_copy = scratch.take_as<E>(kKeys * W);
  E* v_copy = scratch.take_as<E>(kKeys * W);
  float* S = scratch.take(kKeys * kQueries);
  float* left_factor = scratch.take(factor);
  float* right_factor = scratch.take(factor);
  float* O = scratch.take(kQueries * W);
  float* O_rows = scratch.take(kQueries * W);
  float* max = scratch.take(kQueries);
  float* sum = scratch.take(kQueries);
  float* decay = scratch.take(kQueries);
  for (int64_t task = begin; task < end; ++task) {
    const int64_t tiles = s.query_tiles(), head = task / tiles, b = head / s.H, h = head % s.H;
    const int64_t q0 = from_both_ends(task % tiles, tiles) * kQueries, queries = std::min<int64_t>(kQueries, s.T - q0);
    transpose(rows(q.at(b, h), q0, queries, s.D, W, q_copy), queries, W, q_columns);
    std::fill(O, O + kQueries * W, 0.f);
    std::fill(max, max + kQueries, -std::numeric_limits<float>::max());  // finite: the first decay is then 0 and not NaN
    std::fill(sum, sum + kQueries, 0.f);
    const Range seen = band.keys_of<E>(q0, queries);
    for (int64_t k0 = seen.begin; k0 < seen.end; k0 += kKeys) {
      const int64_t keys = std::min<int64_t>(kKeys, seen.end - k0);
      const TileBand tile(band, q0, queries, k0, keys);
      const Rows<float> K = left(rows(k.at(b, h / s.group()), k0, keys, s.D, W, k_copy));
      product<E>(round_up(keys, kHeight<E>), kQueries, steps, K.data, K.stride, q_columns, kQueries, S, kQueries,
                 [&](int64_t j0, int64_t j1) { return tile.queries_of(j0, j1); });
      if (softmax_step(S, tile, s.scale(), max, sum, decay)) scale<E>(O, W, decay);
      add_over_keys<E>(S, tile, rows(v.at(b, h / s.group()), k0, keys, s.D, W, v_copy), W, left_factor, right_factor, O);
    }
    write_rows<E>(upright<E>(O, W, O_rows), W, o.at(b, h), q0, queries, s.D, [&](int64_t i) { return 1.f / sum[i]; });
    for (int64_t i = 0; i < queries; ++i) lse[head * s.T + q0 + i] = max[i] + std::log(sum[i]);
  }
}

// q (B, H, T, D), k and v (B, Hkv, T, D) of one dtype, any strides -> o like q, lse (B, H, T) float32
std::tuple<Tensor, Tensor> forward(const Tensor& q, const Tensor& k, const Tensor& v, bool causal, std::optional<int64_t> window) {
  check_inputs(q, k, v, window);
  const Shape s(q, k);
  const Band band(s.T, causal, window);
  Tensor o = torch::stable::empty_like(q);
  Tensor lse = torch::stable::new_empty(q, {s.B, s.H, s.T}, ScalarType::Float);
  dispatch(q, "attention", [&]<typename T, typename E>() {
    torch::stable::parallel_for(0, s.B * s.H * s.query_tiles(), 1, [&](int64_t begin, int64_t end) {
      forward_tasks<T, E>(s, band, heads<T>(q), heads<T>(k), heads<T>(v), heads<T>(o), writes<float>(lse), begin, end);
    });
  });
  return {o, lse};
}

// ---- backward ----

// Turns products S and dP = dO V' into P = exp(scale * product - lse) and dS = P (dP - delta), in place; lse and delta are one a query.
void softmax_gradient(float* S, float* dP, TileBand band, float scale, const float* lse, const float* delta) {
  const bool whole = band.whole();
  for (int64_t i0 = 0; i0 < kQueries; i0 += kBlock) {
    const Range seen = band.keys_of(i0, i0 + kBlock);
    const Pair l = load_pair(lse + i0), d = load_pair(delta + i0);
    for (int64_t j = 0; j < band.keys; ++j) {
      Pair p{}, ds{};
      if (j >= seen.begin && j < seen.end) {
        p = exp_of(load_pair(S + j * kQueries + i0) * scale - l);
        ds = p * (load_pair(dP + j * kQueries + i0) - d);
        if (!whole) p = band.masked(p, i0, j, 0.f), ds = band.masked(ds, i0, j, 0.f);
      }
      store_pair(S + j * kQueries + i0, p);
      store_pair(dP + j * kQueries + i0, ds);
    }
  }
}

// dk and dv are summed over the group's heads and all tiles of queries by one thread, in a fixed order: no atomics. The sums of one
// key head stay in the thread's scratch until they are done. With fewer key heads than threads the tiles of queries are dealt to
// `parts` tasks a head, and the sums of part p lie in `partial` (2, parts, B, Hkv, sums()), to be added up afterwards: then the order of
// additions depends on the number of threads. Parts for three heads on two threads were tried and took 1.04 [1.01, 1.07] of the time.
template <typename T, typename E>
struct Backward {
  Shape s;
  Band band;
  Heads<const T> q, k, v, o, d_o;
  const float* lse;
  Heads<T> dq, dk, dv;
  int64_t parts;
  float* partial;

  int64_t sums() const { return (s.T + kHeight<E>) * s.width; }  // the last block of keys may reach past T
  float* partial_sums(int64_t which, int64_t part, int64_t pair) const {
    return partial + ((which * parts + part) * s.B * s.heads_kv + pair) * sums();
  }

  void finish(const float* dk_sums, const float* dv_sums, int64_t pair) const {
    const int64_t b = pair / s.heads_kv, h = pair % s.heads_kv;
    write_rows<E>(dk_sums, s.width, dk.at(b, h), 0, s.T, s.D, [&](int64_t) { return s.scale(); });
    write_rows<E>(dv_sums, s.width, dv.at(b, h), 0, s.T, s.D, [](int64_t) { return 1.f; });
  }

  void add_parts(int64_t begin, int64_t end) const {
    const int64_t size = s.T * s.width;
    for (int64_t pair = begin; pair < end; ++pair) {
      for (int64_t which = 0; which < 2; ++which)
        for (int64_t part = 1; part < parts; ++part) {
          float* sums = partial_sums(which, 0, pair);
          const float* more = partial_sums(which, part, pair);
#pragma omp simd
          for (int64_t i = 0; i < size; ++i) sums[i] += more[i];
        }
      finish(partial_sums(0, 0, pair), partial_sums(1, 0, pair), pair);
    }
  }

  // What one thread works in; `own`: of the sums of a key head.
  struct Room {
    int64_t W, own, factor;
    Scratch scratch;
    float *dk_sums = scratch.take(own), *dv_sums = scratch.take(own);
    E *q_copy = scratch.take_as<E>(kQueries * W), *do_copy = scratch.take_as<E>(kQueries * W), *o_copy = scratch.take_as<E>(kQueries * W);
    E *k_copy = scratch.take_as<E>(kKeys * W), *v_copy = scratch.take_as<E>(kKeys * W);
    float *q_columns = scratch.take(kQueries * W / kTerms<E>), *do_columns = scratch.take(kQueries * W / kTerms<E>);
    float *q_zips = scratch.take(kQueries * W), *do_zips = scratch.take(kQueries * W);
    float *S = scratch.take(kKeys * kQueries), *dP = scratch.take(kKeys * kQueries);
    float *P_left = scratch.take(kKeys * kQueries), *dS_left = scratch.take(kKeys * kQueries);
    float *left_factor = scratch.take(factor), *right_factor = scratch.take(factor);
    float *dQ = scratch.take(kQueries * W), *dQ_rows = scratch.take(kQueries * W);
    float *delta = scratch.take(kQueries), *lse = scratch.take(kQueries);

    Room(int64_t W, int64_t own)
        : W(W), own(own), factor(kKeys * std::max<int64_t>(kQueries, W)),
          scratch(2 * own + kQueries * (9 * W + 4 * kKeys + 2) + 2 * kKeys * W + 2 * factor) {}
  };

  // Tile t of the queries of head h: writes its dq, and adds to the sums of the keys that it sees.
  void add_tile(const Room& room, int64_t b, int64_t h, int64_t t, float* dk_sums, float* dv_sums) const {
    const int64_t W = s.width, hk = h / s.group(), scores_row = kQueries / kTerms<E>, steps = steps_of<E>(kTiled<E> ? W : s.D);
    const int64_t q0 = t * kQueries, queries = std::min<int64_t>(kQueries, s.T - q0), summed = round_up(queries, kHeight<E>);
    const Rows<E> Q = rows(q.at(b, h), q0, queries, s.D, W, room.q_copy);
    const Rows<E> dO = rows(d_o.at(b, h), q0, queries, s.D, W, room.do_copy);
    const Rows<E> O = rows(o.at(b, h), q0, queries, s.D, W, room.o_copy);
    transpose(Q, queries, W, room.q_columns);
    transpose(dO, queries, W, room.do_columns);
    const Rows<float> Q_right = right(Q, summed, W, room.q_zips);
    const Rows<float> dO_right = right(dO, summed, W, room.do_zips);
    for (int64_t i = 0; i < queries; ++i) {
      Pair dots{};
      for_each_block(s.D, [&](int64_t, auto read, auto) { dots = dots + read(dO.data + i * dO.stride) * read(O.data + i * O.stride); });
      room.delta[i] = sum_of(dots);
      room.lse[i] = lse[(b * s.H + h) * s.T + q0 + i];
    }
    std::fill(room.delta + queries, room.delta + kQueries, 0.f);
    std::fill(room.lse + queries, room.lse + kQueries, 0.f);
    std::fill_n(room.dQ, kQueries * W, 0.f);
    const Range seen = band.keys_of<E>(q0, queries);
    for (int64_t k0 = seen.begin; k0 < seen.end; k0 += kKeys) {
      const int64_t keys = std::min<int64_t>(kKeys, seen.end - k0), keys_up = round_up(keys, kHeight<E>);
      const TileBand tile(band, q0, queries, k0, keys);
      const auto queries_of = [&](int64_t j0, int64_t j1) { return tile.queries_of(j0, j1); };
      const Rows<E> K = rows(k.at(b, hk), k0, keys, s.D, W, room.k_copy);
      const Rows<E> V = rows(v.at(b, hk), k0, keys, s.D, W, room.v_copy);
      const Rows<float> K_left = left(K), V_left = left(V);
      product<E>(keys_up, kQueries, steps, K_left.data, K_left.stride, room.q_columns, kQueries, room.S, kQueries, queries_of);
      product<E>(keys_up, kQueries, steps, V_left.data, V_left.stride, room.do_columns, kQueries, room.dP, kQueries, queries_of);
      softmax_gradient(room.S, room.dP, tile, s.scale(), room.lse, room.delta);
      const float* P = over_queries<E>(room.S, keys, keys_up, room.P_left);
      const float* dS = over_queries<E>(room.dP, keys, keys_up, room.dS_left);
      add_over_queries<E>(keys_up, W, P, scores_row, dO_right, dv_sums + k0 * W, queries_of);
      add_over_queries<E>(keys_up, W, dS, scores_row, Q_right, dk_sums + k0 * W, queries_of);
      add_over_keys<E>(room.dP, tile, K, W, room.left_factor, room.right_factor, room.dQ);
    }
    write_rows<E>(upright<E>(room.dQ, W, room.dQ_rows), W, dq.at(b, h), q0, queries, s.D, [&](int64_t) { return s.scale(); });
  }

  void tasks(int64_t begin, int64_t end) const {
    [[maybe_unused]] const Tiles<E> registers;
    const Room room(s.width, parts == 1 ? sums() : 0);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t part = task % parts, pair = task / parts, b = pair / s.heads_kv, hk = pair % s.heads_kv;
      float* const dk_sums = parts == 1 ? room.dk_sums : partial_sums(0, part, pair);
      float* const dv_sums = parts == 1 ? room.dv_sums : partial_sums(1, part, pair);
      std::fill_n(dk_sums, sums(), 0.f);
      std::fill_n(dv_sums, sums(), 0.f);
      for (int64_t h = hk * s.group(); h < (hk + 1) * s.group(); ++h)
        for (int64_t t = part; t < s.query_tiles(); t += parts) add_tile(room, b, h, t, dk_sums, dv_sums);
      if (parts == 1) finish(dk_sums, dv_sums, pair);
    }
  }
};

// -> dq like q, dk like k, dv like v
std::tuple<Tensor, Tensor, Tensor> backward(const Tensor& d_o, const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& o,
                                            const Tensor& lse, bool causal, std::optional<int64_t> window) {
  check_inputs(q, k, v, window);
  check("d_o", d_o, q.size(1), q), check("o", o, q.size(1), q);
  STD_TORCH_CHECK(lse.is_contiguous() && lse.scalar_type() == ScalarType::Float && lse.numel() == q.size(0) * q.size(1) * q.size(2),
                  "attention lse: expected a contiguous float32 (B, H, T) of q, ", describe(q), ", got ", describe(lse));
  const Shape s(q, k);
  const int64_t pairs = s.B * s.heads_kv, threads = torch::stable::get_num_threads();
  const int64_t parts = pairs >= threads ? 1 : std::min(ceil_div(threads, std::max<int64_t>(1, pairs)), s.query_tiles());
  const int64_t partials = parts == 1 ? 0 : 2 * parts * pairs * (s.T + kSide) * s.width;  // kSide: the largest kHeight
  Tensor dq = torch::stable::empty_like(q), dk = torch::stable::empty_like(k), dv = torch::stable::empty_like(v);
  Tensor partial = torch::stable::new_empty(q, {partials}, ScalarType::Float);
  dispatch(q, "attention backward", [&]<typename T, typename E>() {
    const Backward<T, E> run{s, Band(s.T, causal, window), heads<T>(q), heads<T>(k), heads<T>(v), heads<T>(o), heads<T>(d_o),
                          reads<float>(lse), heads<T>(dq), heads<T>(dk), heads<T>(dv), parts, writes<float>(partial)};
    torch::stable::parallel_for(0, pairs * parts, 1, [&](int64_t begin, int64_t end) { run.tasks(begin, end); });
    if (parts > 1) torch::stable::parallel_for(0, pairs, 1, [&](int64_t begin, int64_t end) { run.add_parts(begin, end); });
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
