// Products of matrices, many at a time: what Newton-Schulz is made of.
//
//   left (B, M, K) times right (B, K, N), both of any strides
//
// A tile of the result stays in registers while it is summed: kTileRows x 2 vectors. A step takes one broadcast for each row and two loads, so that
// the fused multiply-adds (12 x 2 a step on AVX-512, two a cycle) and not the loads (14, two a cycle) set the pace. `right` is packed by panels of
// two vectors' width, kGroup of them at a time in L2, and the rows of a tile meet them one after the other out of L1.
//
// GFLOP/s at 16 x 192 x 192 on two cores (in float32: results/HISTORY.md). Of a symmetric product only a part is summed, but it is counted whole.
//
//   peak of the machine                                                product   symmetric, counted whole   torch.bmm
//   bfloat16   Zen 4, 468                                                  409                        661         409
//   bfloat16   Xeon with AMX, 1070 by large products of torch's            703                       1170         765
//
// With AMX a tile of bfloat16 is a square of 32 x 32 in matrix registers (tiles.h). Vectors get at its sums by way of memory alone: 4 KB, in L1.
#pragma once

#include "tiles.h"

#include <memory>

#if defined(__AVX512F__)
constexpr int kTileRows = 12;  // 24 of 32 registers hold sums
#else
constexpr int kTileRows = 6;  // 12 of 16
#endif
constexpr int kTileColumns = 2 * kLanes;
// Steps of a packed panel: 256 of them are 32 KB.
constexpr int64_t kSteps = 256;  // tune: 128 256 512
// Panels packed at a time, for each of which a tile's rows are read again: 8 of them are 256 KB of L2.
constexpr int64_t kGroup = 8;  // tune: 4 8 16
// Tiles whose sums wait for the next steps, where there are more steps than a panel has.
constexpr int64_t kWaiting = 32;  // tune: 16 32 64

// Rows of a tile of T, and the steps of which a panel has a multiple.
template <typename T>
constexpr int kHeight = kTiled<T> ? kSide : kTileRows;
template <typename T>
constexpr int64_t padded(int64_t steps) { return kTiled<T> ? round_up(steps, kTileSteps) : steps; }

// A step of a packed panel.
struct alignas(sizeof(floats)) Step {
  float lane[kTileColumns];
};

// A matrix of any strides.
template <typename T>
struct View {
  const T* data;
  int64_t row, column;  // distances between neighbours
  const T* at(int64_t i, int64_t j) const { return data + i * row + j * column; }
};

// Adds the products of `steps` steps to `sums`, the sums of one tile. `left` points at the tile's first row, `panel` holds kTileColumns lanes a step.
// If kRowMajor, rows are `stride` apart and the terms of a row are neighbours; else the terms of all rows in a step are neighbours, and steps are
// `stride` rows' terms apart.
template <bool kRowMajor, typename T>
inline void sum_tile(const T* left, int64_t stride, const float* panel, int64_t steps, Pair (&sums)[kTileRows]) {
  // One pointer for three rows, the others by their distance from it: twelve pointers would pass through vector registers (8 % slower).
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

// The terms of a step, which are `stride` apart, in one lane. Of bfloat16 the second is zero unless the step is `whole`.
inline float step(const float* from, int64_t, bool) { return *from; }
inline float step(const bf16* from, int64_t stride, bool whole) {
  return std::bit_cast<float>(from->x | static_cast<uint32_t>(whole ? from[stride].x : 0) << 16);
}

// Packs `depth` terms of columns j .. j + columns of `right`, from term k on, step by step; zeros where a panel is wider than what is left, or longer.
template <typename T>
void pack(const View<T>& right, int64_t k, int64_t depth, int64_t j, int64_t columns, float* panel) {
  const int64_t whole = depth / kTerms<T>;  // steps
  int64_t done = 0;
  std::fill(panel + steps_of<T>(depth) * kTileColumns, panel + padded<T>(steps_of<T>(depth)) * kTileColumns, 0.f);
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

// Packs `depth` terms of rows i .. i + height of `left`, from term k on, the terms of all rows in a step as neighbours; zeros where a tile is higher
// than what is left.
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

// The rows of a tile: read where they lie if their strides allow it, else packed into `room`.
template <typename T>
struct Rows {
  const T* data;
  int64_t stride;
  bool row_major;
  Rows(const View<T>& left, int64_t i, int64_t height, int64_t k, int64_t depth, float* room) : data(left.at(i, k)) {
    const bool whole = height == kTileRows && depth % kTerms<T> == 0;
    row_major = whole && left.column == 1;
    stride = row_major ? left.row : left.column;
    if (row_major || (whole && left.row == 1 && kTerms<T> == 1)) return;
    pack_rows(left, i, height, k, depth, room);
    data = reinterpret_cast<const T*>(room), stride = kTileRows;
  }
  void sum(const float* panel, int64_t steps, Pair (&sums)[kTileRows]) const {
    if (row_major) sum_tile<true>(data, stride, panel, steps, sums);
    else sum_tile<false>(data, stride, panel, steps, sums);
  }
};

#if defined(__AMX_BF16__)
// The same for AMX, which wants the terms of a row as neighbours, and whole steps.
template <>
struct Rows<bf16> {
  const bf16* data;
  int64_t stride;
  Rows(const View<bf16>& left, int64_t i, int64_t height, int64_t k, int64_t depth, float* room) : data(left.at(i, k)), stride(left.row) {
    if (height == kSide && depth % kSide == 0 && left.column == 1 && left.row % kTerms<bf16> == 0) return;
    bf16* const rows = reinterpret_cast<bf16*>(room);
    const int64_t width = round_up(depth, kSide), whole = left.row == 1 && height == kSide ? depth / kSide * kSide : 0;
    for (int64_t t = 0; t < whole; t += kSide) transpose(left.at(i, k + t), left.column, rows + t, width);
    for (int64_t r = 0; r < kSide; ++r) {
      bf16* const row = rows + r * width;
      const int64_t terms = r < height ? depth : 0;
      if (left.column == 1) std::copy_n(left.at(i + r, k), terms, row);
      else for (int64_t t = whole; t < terms; ++t) row[t] = *left.at(i + r, k + t);
      std::fill(row + terms, row + width, bf16{});
    }
    data = rows, stride = width;
  }
  void sum(const float* panel, int64_t steps, float* sums, bool more) const {
    sum_square(reinterpret_cast<const float*>(data), stride / kTerms<bf16>, panel, kTileColumns, padded<bf16>(steps), sums, kTileColumns, more);
  }
};
#endif

// left (M, K) times right (K, N). If `lower`, M = N, and what lies above the diagonal is not wanted.
template <typename T>
struct Product {
  using Element = T;
  View<T> left, right;
  int64_t M, N, K;
  bool lower;

  int64_t groups() const { return ceil_div(N, kGroup * kTileColumns); }
  // Tiles of rows that a group of columns needs: those from the first that reaches below the diagonal on.
  int64_t first_tile(int64_t group) const { return lower ? group * kGroup * kTileColumns / kHeight<T> : 0; }
  int64_t tiles(int64_t group) const { return ceil_div(M, kHeight<T>) - first_tile(group); }
  // Short rows of tiles, which end at the diagonal, and whole ones by turns, so that all threads have as much to do.
  int64_t tile(int64_t group, int64_t turn) const {
    return first_tile(group) + (lower ? from_both_ends(turn, tiles(group)) : turn);
  }
};

// Sums tiles `begin` to `end` of a group and calls finish(i, j, sums, columns) for each row i of a tile, whose columns begin with j.
template <typename T, typename Finish>
void multiply_group(const Product<T>& product, int64_t group, int64_t begin, int64_t end, const Finish& finish) {
  constexpr int64_t kDepth = kSteps * kTerms<T>;
  const auto [left, right, M, N, K, lower] = product;
  const int64_t first = group * kGroup * kTileColumns, last = std::min(N, first + kGroup * kTileColumns);
  const int64_t panels = ceil_div(last - first, kTileColumns), panel_steps = std::min(padded<T>(steps_of<T>(K)), kSteps);
  const int64_t block = K > kDepth ? kWaiting : end - begin;
  const auto packed = std::make_unique_for_overwrite<Step[]>(panels * panel_steps);
  const auto waiting = std::make_unique_for_overwrite<Step[]>(K > kDepth ? block * panels * kHeight<T> : 0);
  alignas(64) float room[kSteps * kHeight<T>];
  for (; begin < end; begin += block) {
    int64_t k = 0;
    do {  // once even where K is 0: the sums are zero then
      const int64_t depth = std::min(kDepth, K - k);
      for (int64_t p = 0, j = first; p < panels; ++p, j += kTileColumns)
        pack(right, k, depth, j, std::min<int64_t>(kTileColumns, last - j), packed[p * panel_steps].lane);
      for (int64_t turn = begin; turn < std::min(end, begin + block); ++turn) {
        const int64_t i = product.tile(group, turn) * kHeight<T>, height = std::min<int64_t>(kHeight<T>, M - i);
        const Rows<T> rows(left, i, height, k, depth, room);
        for (int64_t p = 0, j = first; p < panels && !(lower && j >= i + height); ++p, j += kTileColumns) {
          Step* kept = K > kDepth ? &waiting[((turn - begin) * panels + p) * kHeight<T>] : nullptr;
          Pair sums[kHeight<T>];
          if constexpr (kTiled<T>) {
            float* const all = kept ? kept->lane : reinterpret_cast<float*>(sums);  // in memory either way
            rows.sum(packed[p * panel_steps].lane, steps_of<T>(depth), all, k > 0);
            if (k + depth >= K)
              for (int64_t r = 0; r < height; ++r)
                finish(i + r, j, load_pair(all + r * kTileColumns), std::min<int64_t>(kTileColumns, last - j));
          } else {
#pragma GCC unroll 12
            for (int r = 0; r < kTileRows; ++r) sums[r] = k ? load_pair(kept[r].lane) : Pair{};
            rows.sum(packed[p * panel_steps].lane, steps_of<T>(depth), sums);
            if (k + depth < K)
              for (int r = 0; r < kTileRows; ++r) store_pair(kept[r].lane, sums[r]);
            else
              for (int64_t r = 0; r < height; ++r) finish(i + r, j, sums[r], std::min<int64_t>(kTileColumns, last - j));
          }
        }
      }
    } while ((k += kDepth) < K);
  }
}

// B products of one shape on all threads: product(b) is one of them, and finish(b, i, j, sums, columns) is called once for each row of each tile.
template <typename Products, typename Finish>
void multiply_all(int64_t B, const Products& product, const Finish& finish) {
  if (B == 0) return;
  const auto any = product(0);
  int64_t tiles = 0;  // of one product, group after group
  for (int64_t group = 0; group < any.groups(); ++group) tiles += any.tiles(group);
  torch::stable::parallel_for(0, B * tiles, 1, [&](int64_t begin, int64_t end) {
    [[maybe_unused]] const Tiles<typename std::invoke_result_t<Products, int64_t>::Element> registers;
    while (begin < end) {
      const int64_t b = begin / tiles;
      int64_t group = 0, turn = begin % tiles;
      for (; turn >= any.tiles(group); ++group) turn -= any.tiles(group);
      const int64_t stop = std::min(turn + end - begin, any.tiles(group));
      multiply_group(product(b), group, turn, stop, [&](int64_t i, int64_t j, Pair sums, int64_t columns) { finish(b, i, j, sums, columns); });
      begin += stop - turn;
    }
  });
}
