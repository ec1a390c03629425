// Products of float32 matrices that fit in a core's L2 cache, many at a time: what Newton-Schulz is made of.
//
//   out = b add + c left right          left (B, M, K), right (B, K, N) of any strides, add and out (B, M, N) contiguous
//
// A tile of out stays in registers while it is summed: kTileRows x 2 vectors, each fed by one broadcast and two loads a step, so that the
// fused multiply-adds (12 x 2 a step on AVX-512, two a cycle) and not the loads (14, two a cycle) set the pace. `right` is packed by panels of two
// vectors' width, once for all rows. Of 340 GFLOP/s of two AVX-512 cores a batch of 192 x 192 matrices gets 290, where torch's bmm gets 260; of a symmetric
// product only a part is summed, which counted whole makes 458 (results/HISTORY.md).
#pragma once

#include "lanes.h"

#if defined(__AVX512F__)
constexpr int kTileRows = 12;  // 24 of 32 registers hold sums
#else
constexpr int kTileRows = 6;  // 12 of 16
#endif
constexpr int kTileColumns = 2 * kLanes;
constexpr int64_t kDepth = 256;  // tune: 128 256 512
// Terms summed in registers before they are added to out: a packed panel of this depth is 32 KB.

// A matrix of any strides.
struct View {
  const float* data;
  int64_t row, column;  // distances between neighbours
  const float* at(int64_t i, int64_t j) const { return data + i * row + j * column; }
};

// The sums of one tile over `depth` terms: `left` points at its first row, `panel` holds kTileColumns values a term.
template <bool kRowMajor>
inline void sum_tile(const float* left, int64_t stride, const float* panel, int64_t depth, Pair (&sums)[kTileRows]) {
  for (int64_t k = 0; k < depth; ++k) {
    const Pair right = load_pair(panel + k * kTileColumns);
#pragma GCC unroll 12
    for (int i = 0; i < kTileRows; ++i) {
      const float a = kRowMajor ? left[i * stride + k] : left[k * stride + i];
      sums[i] = sums[i] + right * a;
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

// `depth` terms of columns j .. j + columns of `right`, from term k on, one after the other; zeros where a panel is wider than what is left.
inline void pack(const View& right, int64_t k, int64_t depth, int64_t j, int64_t columns, float* panel) {
  if (columns < kTileColumns) std::fill_n(panel, depth * kTileColumns, 0.f);
  if (right.column == 1) {
    for (int64_t t = 0; t < depth; ++t) std::copy_n(right.at(k + t, j), columns, panel + t * kTileColumns);
    return;
  }
  const int64_t whole = right.row == 1 && columns == kTileColumns ? depth / kLanes * kLanes : 0;
  for (int64_t t = 0; t < whole; t += kLanes)
    for (int64_t c = 0; c < kTileColumns; c += kLanes)
      transpose(right.at(k + t, j + c), right.column, panel + t * kTileColumns + c, kTileColumns);
  for (int64_t t = whole; t < depth; ++t)
    for (int64_t c = 0; c < columns; ++c) panel[t * kTileColumns + c] = *right.at(k + t, j + c);
}

// Columns j .. j + kTileColumns of out, from row `first` on.
inline void multiply_panel(const View& left, const View& right, const float* add, float b, float c, int64_t M, int64_t N, int64_t K,
                           int64_t first, int64_t j, float* out) {
  alignas(64) float panel[kDepth * kTileColumns];
  alignas(64) float rows[kDepth * kTileRows];
  const int64_t columns = std::min<int64_t>(kTileColumns, N - j);
  int64_t k = 0;
  do {  // once where there are no terms: out is then what they are added to
    const int64_t depth = std::min(kDepth, K - k);
    pack(right, k, depth, j, columns, panel);
    for (int64_t i = first; i < M; i += kTileRows) {
      const int64_t height = std::min<int64_t>(kTileRows, M - i);
      Pair sums[kTileRows] = {};
      if (height == kTileRows && left.column == 1) sum_tile<true>(left.at(i, k), left.row, panel, depth, sums);
      else if (height == kTileRows && left.row == 1) sum_tile<false>(left.at(i, k), left.column, panel, depth, sums);
      else {
        std::fill_n(rows, depth * kTileRows, 0.f);
        for (int64_t t = 0; t < depth; ++t)
          for (int64_t r = 0; r < height; ++r) rows[t * kTileRows + r] = *left.at(i + r, k + t);
        sum_tile<false>(rows, kTileRows, panel, depth, sums);
      }
      for (int64_t r = 0; r < height; ++r) {
        const int64_t at = (i + r) * N + j;
        const float* before = k ? out : add;  // what the sum is added to
        const float scale = k ? 1.f : b;
        Pair value = sums[r] * c;
        if (columns == kTileColumns) {
          if (before) value = value + load_pair(before + at) * scale;
          store_pair(out + at, value);
        } else {
          if (before) value = value + load_pair(before + at, columns) * scale;
          store_pair(out + at, value, columns);
        }
      }
    }
  } while ((k += kDepth) < K);
}
