// Products of matrices that fit in a core's L2 cache, many at a time: what Newton-Schulz is made of.
//
//   out = b add + c left right          left (B, M, K), right (B, K, N) of any strides, add and out (B, M, N) contiguous
//
// A tile of out stays in registers while it is summed: kTileRows x 2 vectors, each fed by one broadcast and two loads a step, so that the
// fused multiply-adds (12 x 2 a step on AVX-512, two a cycle) and not the loads (14, two a cycle) set the pace. `right` is packed by panels of two
// vectors' width, once for all rows. Of 340 GFLOP/s of two AVX-512 cores a batch of 192 x 192 matrices gets 290, where torch's bmm gets 260; of a symmetric
// product only a part is summed, which counted whole makes 458 (results/HISTORY.md). bfloat16 on two Zen 4 cores: 380 and 605, torch 400.
//
// A step is one term of float32. Of bfloat16 it is two, which lie in one lane of 32 bits: an instruction of AVX512-BF16 adds both products to
// that lane's float32. Sums are float32 to the end.
#pragma once

#include "lanes.h"

#if defined(__AVX512F__)
#include <immintrin.h>

constexpr int kTileRows = 12;  // 24 of 32 registers hold sums
#else
constexpr int kTileRows = 6;  // 12 of 16
#endif
constexpr int kTileColumns = 2 * kLanes;
constexpr int64_t kSteps = 256;  // tune: 128 256 512
// Steps of a packed panel: of 256 it is 32 KB.
template <typename T>
constexpr int64_t kTerms = sizeof(float) / sizeof(T);  // of a step

// A matrix of any strides.
template <typename T>
struct View {
  const T* data;
  int64_t row, column;  // distances between neighbours
  const T* at(int64_t i, int64_t j) const { return data + i * row + j * column; }
};

// The sums of one tile over `steps` steps: `left` points at its first row, `panel` holds kTileColumns lanes a step. If kRowMajor, rows of left are `stride`
// apart and steps follow each other; else the rows' steps do, and the next step is `stride` of them further.
template <bool kRowMajor>
inline void sum_tile(const float* left, int64_t stride, const float* panel, int64_t steps, Pair (&sums)[kTileRows]) {
  for (int64_t k = 0; k < steps; ++k) {
    const Pair right = load_pair(panel + k * kTileColumns);
#pragma GCC unroll 12
    for (int i = 0; i < kTileRows; ++i) {
      const float a = kRowMajor ? left[i * stride + k] : left[k * stride + i];
      sums[i] = sums[i] + right * a;
    }
  }
}

#if defined(__AVX512F__)
template <bool kRowMajor>
__attribute__((target("avx512bf16"))) void sum_tile(const bf16* left, int64_t stride, const float* panel, int64_t steps, Pair (&into)[kTileRows]) {
  Pair sums[kTileRows];
#pragma GCC unroll 12
  for (int i = 0; i < kTileRows; ++i) sums[i] = into[i];
  for (int64_t k = 0; k < steps; ++k) {
    const Pair right = load_pair(panel + k * kTileColumns);
#pragma GCC unroll 12
    for (int i = 0; i < kTileRows; ++i) {
      int terms;
      std::memcpy(&terms, left + (kRowMajor ? i * stride + 2 * k : 2 * (k * stride + i)), sizeof terms);
      const __m512bh a = (__m512bh)_mm512_set1_epi32(terms);
      sums[i].even = _mm512_dpbf16_ps(sums[i].even, a, (__m512bh)right.even);
      sums[i].odd = _mm512_dpbf16_ps(sums[i].odd, a, (__m512bh)right.odd);
    }
  }
#pragma GCC unroll 12
  for (int i = 0; i < kTileRows; ++i) into[i] = sums[i];
}
#endif

// The square at `from`, whose rows are `stride` apart, transposed to `to`.
inline void transpose(const float* from, int64_t stride, float* to, int64_t to_stride) {
  floats rows[kLanes];
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) rows[i] = *reinterpret_cast<const unaligned_floats*>(from + i * stride);
  transpose(rows);
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) *reinterpret_cast<unaligned_floats*>(to + i * to_stride) = rows[i];
}

// Two rows of bfloat16 -> both of each column in one lane, those of even and of odd columns.
inline Pair zipped(const bf16* above, const bf16* below) {
  const words a = *reinterpret_cast<const unaligned_words*>(above), b = *reinterpret_cast<const unaligned_words*>(below);
  return {reinterpret_cast<floats>((a & 0xffffu) | b << 16), reinterpret_cast<floats>(a >> 16 | (b & 0xffff0000u))};
}

// The same of kBlock x kBlock bfloat16, whose rows are `stride` apart, transposed to `to`.
inline void transpose(const bf16* from, int64_t stride, bf16* to, int64_t to_stride) {
  floats even[kLanes], odd[kLanes];  // pairs of rows; transposed, of columns
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    const Pair pair = zipped(from + 2 * i * stride, from + (2 * i + 1) * stride);
    even[i] = pair.even, odd[i] = pair.odd;
  }
  transpose(even);
  transpose(odd);
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    *reinterpret_cast<unaligned_floats*>(to + 2 * i * to_stride) = even[i];
    *reinterpret_cast<unaligned_floats*>(to + (2 * i + 1) * to_stride) = odd[i];
  }
}

// A step's terms, `stride` apart; the second is zero where there is none.
inline float step(const float* from, int64_t, bool) { return *from; }
inline float step(const bf16* from, int64_t stride, bool whole) {
  return std::bit_cast<float>(from->x | static_cast<uint32_t>(whole ? from[stride].x : 0) << 16);
}

// Where a Pair of T has column c.
template <typename T>
constexpr int64_t lane(int64_t c) { return std::is_same_v<T, bf16> ? c % 2 * kLanes + c / 2 : c; }

// `depth` terms of columns j .. j + columns of `right`, from term k on, step by step; zeros where a panel is wider than what is left.
template <typename T>
void pack(const View<T>& right, int64_t k, int64_t depth, int64_t j, int64_t columns, float* panel) {
  const int64_t steps = (depth + kTerms<T> - 1) / kTerms<T>;
  int64_t done = 0;
  if (columns < kTileColumns) {
    std::fill_n(panel, steps * kTileColumns, 0.f);
  } else if (right.column == 1) {
    for (const int64_t whole = depth / kTerms<T>; done < whole; ++done) {
      const T* from = right.at(k + done * kTerms<T>, j);
      if constexpr (kTerms<T> == 1) store_pair(panel + done * kTileColumns, load_pair(from));
      else store_pair(panel + done * kTileColumns, zipped(from, from + right.row));
    }
  } else if (right.row == 1) {
    constexpr int64_t second = kTerms<T> == 1 ? kLanes : 1;  // column with which the Pair's other half begins
    for (; (done + kLanes) * kTerms<T> <= depth; done += kLanes)
      for (int64_t half = 0; half < 2; ++half)
        transpose(reinterpret_cast<const float*>(right.at(k + done * kTerms<T>, j + half * second)), right.column,
                  panel + done * kTileColumns + half * kLanes, kTileColumns);
  }
  for (; done < steps; ++done)
    for (int64_t c = 0; c < columns; ++c)
      panel[done * kTileColumns + lane<T>(c)] = step(right.at(k + done * kTerms<T>, j + c), right.row, (done + 1) * kTerms<T> <= depth);
}

// `depth` terms of rows i .. i + height of `left`, from term k on, the rows' steps beside each other; zeros where a tile is higher than what is left.
template <typename T>
void pack_rows(const View<T>& left, int64_t i, int64_t height, int64_t k, int64_t depth, float* rows) {
  if (height < kTileRows) std::fill_n(rows, (depth + kTerms<T> - 1) / kTerms<T> * kTileRows, 0.f);
  for (int64_t t = 0; t < depth; t += kTerms<T>, rows += kTileRows) {
    const T* from = left.at(i, k + t);
    const bool whole = t + kTerms<T> <= depth;
    if (left.row == 1 && height == kTileRows && whole) {  // vector code
#pragma omp simd
      for (int64_t r = 0; r < kTileRows; ++r) rows[r] = step(from + r, left.column, true);
    } else {
      for (int64_t r = 0; r < height; ++r) rows[r] = step(from + r * left.row, left.column, whole);
    }
  }
}

// Columns j .. j + kTileColumns of out, from row `first` on.
template <typename T>
void multiply_panel(const View<T>& left, const View<T>& right, const T* add, float b, float c, int64_t M, int64_t N, int64_t K, int64_t first,
                    int64_t j, T* out) {
  constexpr int64_t kDepth = kSteps * kTerms<T>;
  alignas(64) float panel[kSteps * kTileColumns];
  alignas(64) float rows[kSteps * kTileRows];
  std::vector<float> begun(K > kDepth ? M * kTileColumns : 0);  // sums of which some terms are still to come
  const int64_t columns = std::min<int64_t>(kTileColumns, N - j);
  int64_t k = 0;
  do {  // once where there are no terms: out is then what they are added to
    const int64_t depth = std::min(kDepth, K - k), steps = (depth + kTerms<T> - 1) / kTerms<T>;
    pack(right, k, depth, j, columns, panel);
    for (int64_t i = first; i < M; i += kTileRows) {
      const int64_t height = std::min<int64_t>(kTileRows, M - i);
      Pair sums[kTileRows] = {};
      if (k)
        for (int64_t r = 0; r < height; ++r) sums[r] = load_pair(&begun[(i + r) * kTileColumns]);
      if (height == kTileRows && left.column == 1 && depth == steps * kTerms<T>)
        sum_tile<true>(left.at(i, k), left.row, panel, steps, sums);
      else if (height == kTileRows && left.row == 1 && kTerms<T> == 1)
        sum_tile<false>(left.at(i, k), left.column, panel, steps, sums);
      else {
        pack_rows(left, i, height, k, depth, rows);
        sum_tile<false>(reinterpret_cast<const T*>(rows), kTileRows, panel, steps, sums);
      }
      for (int64_t r = 0; r < height; ++r) {
        const int64_t at = (i + r) * N + j;
        if (k + depth < K) {
          store_pair(&begun[(i + r) * kTileColumns], sums[r]);
          continue;
        }
        Pair value = sums[r] * c;
        if (columns == kTileColumns) {
          if (add) value = value + load_pair(add + at) * b;
          store_pair(out + at, value);
        } else {
          if (add) value = value + load_pair(add + at, columns) * b;
          store_pair(out + at, value, columns);
        }
      }
    }
  } while ((k += kDepth) < K);
}
