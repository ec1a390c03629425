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

#include <memory>

#if defined(__AVX512F__)
constexpr int kTileRows = 12;  // 24 of 32 registers hold sums
#else
constexpr int kTileRows = 6;  // 12 of 16
#endif
constexpr int kTileColumns = 2 * kLanes;
constexpr int64_t kSteps = 256;  // tune: 128 256 512
// Steps of a packed panel: of 256 it is 32 KB.
constexpr int64_t kGroup = 8;  // tune: 4 8 16
// Panels packed at a time, for each of which a tile's rows are read again: 256 KB of L2.
constexpr int64_t kWaiting = 32;  // tune: 16 32 64
// Tiles whose sums wait for the next steps, where there are more than a panel has.

// A step of a packed panel.
struct alignas(sizeof(floats)) Step {
  float lane[kTileColumns];
};

constexpr int64_t tiles_of(int64_t length, int64_t tile) { return (length + tile - 1) / tile; }

// A matrix of any strides.
template <typename T>
struct View {
  const T* data;
  int64_t row, column;  // distances between neighbours
  const T* at(int64_t i, int64_t j) const { return data + i * row + j * column; }
};

// The sums of one tile, which go on from `sums`: `left` points at its first row, `panel` holds kTileColumns lanes a step. If kRowMajor, rows are
// `stride` apart and a row's terms follow each other; else a step's terms of all rows do, and steps are `stride` of them apart.
template <bool kRowMajor, typename T>
inline void sum_tile(const T* left, int64_t stride, const float* panel, int64_t steps, Pair (&sums)[kTileRows]) {
  // Of three rows one has a pointer, and the others their distance from it: twelve pointers would pass through vector registers (8 % slower).
  constexpr int kPointers = kTileRows / 3;
  const int64_t next_row = kRowMajor ? stride : kTerms<T>, next_step = kRowMajor ? kTerms<T> : stride * kTerms<T>;
  const T* row[kPointers];
#pragma GCC unroll 4
  for (int i = 0; i < kPointers; ++i) row[i] = left + 3 * i * next_row;
  for (int64_t k = 0; k < steps; ++k) {
    const Pair right = load_pair(panel + k * kTileColumns);
#pragma GCC unroll 12
    for (int i = 0; i < kTileRows; ++i) {
      const T* terms = row[i / 3] + i % 3 * next_row;
      sums[i] = {add_products<T>(sums[i].even, terms, right.even), add_products<T>(sums[i].odd, terms, right.odd)};
    }
#pragma GCC unroll 4
    for (int i = 0; i < kPointers; ++i) row[i] += next_step;
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

// Of a product that is `lower`, a square, only tiles that reach below the diagonal are summed: those of a group of panels from `from` on.
struct Tiles {
  int64_t from, count;
  Tiles(int64_t M, int64_t group, bool lower) : from(lower ? group * kGroup * kTileColumns / kTileRows : 0), count(tiles_of(M, kTileRows) - from) {}
  // Rows of panels that end at the diagonal and whole ones by turns, so that threads have alike.
  int64_t at(int64_t turn, bool lower) const { return from + (!lower ? turn : turn % 2 ? count - 1 - turn / 2 : turn / 2); }
};

// Tiles `begin` to `end` of the columns of one group; calls finish(i, j, sums, columns) for each row i of a tile.
template <typename T, typename Finish>
void multiply_group(const View<T>& left, const View<T>& right, int64_t M, int64_t N, int64_t K, bool lower, int64_t group, int64_t begin, int64_t end,
                    const Finish& finish) {
  constexpr int64_t kDepth = kSteps * kTerms<T>;
  const int64_t first = group * kGroup * kTileColumns, last = std::min(N, first + kGroup * kTileColumns);
  const int64_t panels = tiles_of(last - first, kTileColumns);
  const Tiles tiles(M, group, lower);
  const int64_t packed = std::min(steps_of<T>(K), kSteps), waiting = K > kDepth ? kWaiting : end - begin;
  const auto panel = std::make_unique_for_overwrite<Step[]>(panels * packed);
  const auto begun = std::make_unique_for_overwrite<Step[]>(K > kDepth ? waiting * panels * kTileRows : 0);  // sums of which terms are still to come
  alignas(64) float rows[kSteps * kTileRows];
  for (int64_t block = begin; block < end; block += waiting) {
    const int64_t stop = std::min(end, block + waiting);
    int64_t k = 0;
    do {  // once where there are no terms: out is then what they are added to
      const int64_t depth = std::min(kDepth, K - k), steps = steps_of<T>(depth);
      for (int64_t p = 0; p < panels; ++p) {
        const int64_t j = first + p * kTileColumns;
        pack(right, k, depth, j, std::min<int64_t>(kTileColumns, last - j), panel[p * packed].lane);
      }
      for (int64_t turn = block; turn < stop; ++turn) {
        const int64_t i = tiles.at(turn, lower) * kTileRows, height = std::min<int64_t>(kTileRows, M - i);
        const bool whole = height == kTileRows && depth == steps * kTerms<T>;
        const bool by_rows = whole && left.column == 1, by_steps = whole && left.row == 1 && kTerms<T> == 1;
        if (!by_rows && !by_steps) pack_rows(left, i, height, k, depth, rows);
        for (int64_t p = 0, j = first; p < panels; ++p, j += kTileColumns) {
          if (lower && j >= i + height) break;
          Step* kept = K > kDepth ? &begun[((turn - block) * panels + p) * kTileRows] : nullptr;
          Pair sums[kTileRows];
#pragma GCC unroll 12
          for (int r = 0; r < kTileRows; ++r) sums[r] = k ? load_pair(kept[r].lane) : Pair{};
          if (by_rows) sum_tile<true>(left.at(i, k), left.row, panel[p * packed].lane, steps, sums);
          else if (by_steps) sum_tile<false>(left.at(i, k), left.column, panel[p * packed].lane, steps, sums);
          else sum_tile<false>(reinterpret_cast<const T*>(rows), kTileRows, panel[p * packed].lane, steps, sums);
          if (k + depth < K)
            for (int r = 0; r < kTileRows; ++r) store_pair(kept[r].lane, sums[r]);
          else
            for (int64_t r = 0; r < height; ++r) finish(i + r, j, sums[r], std::min<int64_t>(kTileColumns, last - j));
        }
      }
    } while ((k += kDepth) < K);
  }
}

// B products on all threads: left(b) and right(b) are the factors of product b, and finish(b, i, j, sums, columns) is called once for each row i of
// each tile, whose columns begin with j.
template <typename T, typename Left, typename Right, typename Finish>
void multiply(int64_t B, int64_t M, int64_t N, int64_t K, bool lower, const Left& left, const Right& right, const Finish& finish) {
  const int64_t groups = tiles_of(N, kGroup * kTileColumns);
  int64_t tiles = 0;  // of one product, group after group
  for (int64_t group = 0; group < groups; ++group) tiles += Tiles(M, group, lower).count;
  torch::stable::parallel_for(0, B * tiles, 1, [&](int64_t begin, int64_t end) {
    while (begin < end) {
      const int64_t b = begin / tiles;
      int64_t group = 0, turn = begin % tiles, count;
      while (turn >= (count = Tiles(M, group, lower).count)) turn -= count, ++group;
      const int64_t stop = std::min(turn + end - begin, count);
      multiply_group<T>(left(b), right(b), M, N, K, lower, group, turn, stop,
                        [&](int64_t i, int64_t j, Pair sums, int64_t columns) { finish(b, i, j, sums, columns); });
      begin += stop - turn;
    }
  });
}
