// Products of matrices that fit in a core's L2 cache, many at a time: what Newton-Schulz is made of.
//
//   out = b add + c left right          left (B, M, K), right (B, K, N) of any strides, add and out (B, M, N) contiguous
//
// A tile of out stays in registers while it is summed: kTileRows x 2 vectors, each fed by one broadcast and two loads a step, so that the
// fused multiply-adds (12 x 2 a step on AVX-512, two a cycle) and not the loads (14, two a cycle) set the pace. `right` is packed by panels of two
// vectors' width, once for all rows. Of 340 GFLOP/s of two AVX-512 cores a batch of 192 x 192 matrices gets 290, where torch's bmm gets 260; of a symmetric
// product only a part is summed, which counted whole makes 458 (results/HISTORY.md). bfloat16 on two Zen 4 cores: 380 and 605, torch 400.
#pragma once

#include "pairs.h"

#if defined(__AVX512F__)
constexpr int kTileRows = 12;  // 24 of 32 registers hold sums
#else
constexpr int kTileRows = 6;  // 12 of 16
#endif
constexpr int kTileColumns = 2 * kLanes;
constexpr int64_t kSteps = 256;  // tune: 128 256 512
// Steps of a packed panel: of 256 it is 32 KB.

// A matrix of any strides.
template <typename T>
struct View {
  const T* data;
  int64_t row, column;  // distances between neighbours
  const T* at(int64_t i, int64_t j) const { return data + i * row + j * column; }
};

// The sums of one tile: `left` points at its first row, `panel` holds kTileColumns lanes a step. If kRowMajor, rows are `stride` apart and a row's
// terms follow each other; else a step's terms of all rows do, and steps are `stride` of them apart.
template <bool kRowMajor, typename T>
inline void sum_tile(const T* left, int64_t stride, const float* panel, int64_t steps, Pair (&sums)[kTileRows]) {
  for (int64_t k = 0; k < steps; ++k) {
    const Pair right = load_pair(panel + k * kTileColumns);
#pragma GCC unroll 12
    for (int i = 0; i < kTileRows; ++i) {
      const T* terms = left + (kRowMajor ? i * stride + k * kTerms<T> : (k * stride + i) * kTerms<T>);
      sums[i] = {add_products<T>(sums[i].even, terms, right.even), add_products<T>(sums[i].odd, terms, right.odd)};
    }
  }
}

// The square at `from`, whose rows are `stride` apart, transposed to `to`.
inline void transpose(const float* from, int64_t stride, float* to, int64_t to_stride) {
  floats rows[kLanes];
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) rows[i] = *reinterpret_cast<const unaligned_floats*>(from + i * stride);
  transpose(rows);
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) *reinterpret_cast<unaligned_floats*>(to + i * to_stride) = rows[i];
}
// The same of kBlock x kBlock bfloat16.
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

// `depth` terms of columns j .. j + columns of `right`, from term k on, step by step; zeros where a panel is wider than what is left.
template <typename T>
void pack(const View<T>& right, int64_t k, int64_t depth, int64_t j, int64_t columns, float* panel) {
  const int64_t whole = depth / kTerms<T>;  // steps
  int64_t done = 0;
  if (columns < kTileColumns) {
    std::fill_n(panel, steps_of<T>(depth) * kTileColumns, 0.f);
  } else if (right.column == 1) {
    for (; done < whole; ++done) {
      const T* from = right.at(k + done * kTerms<T>, j);
      if constexpr (kTerms<T> == 1) store_pair(panel + done * kTileColumns, load_pair(from));
      else store_pair(panel + done * kTileColumns, zipped(from, from + right.row));
    }
  } else if (right.row == 1) {
    constexpr int64_t second = kTerms<T> == 1 ? kLanes : 1;  // column with which the Pair's other half begins
    for (; done + kLanes <= whole; done += kLanes)
      for (int64_t half = 0; half < 2; ++half)
        transpose(reinterpret_cast<const float*>(right.at(k + done * kTerms<T>, j + half * second)), right.column,
                  panel + done * kTileColumns + half * kLanes, kTileColumns);
  }
  for (; done < steps_of<T>(depth); ++done)
    for (int64_t c = 0; c < columns; ++c)
      panel[done * kTileColumns + lane_of<T>(c)] = step(right.at(k + done * kTerms<T>, j + c), right.row, done < whole);
}

// `depth` terms of rows i .. i + height of `left`, from term k on, a step's terms of all rows beside each other; zeros where a tile is higher than
// what is left.
template <typename T>
void pack_rows(const View<T>& left, int64_t i, int64_t height, int64_t k, int64_t depth, float* rows) {
  if (height < kTileRows) std::fill_n(rows, steps_of<T>(depth) * kTileRows, 0.f);
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
    const int64_t depth = std::min(kDepth, K - k), steps = steps_of<T>(depth);
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
