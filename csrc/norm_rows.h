// RMSNorm row by row, forward and backward: what rms_norm.cpp and add_rms_norm.cpp share.
//
// A row of D elements (a few KB) is passed over twice, but only the first pass reads memory: the second finds it in L1. For a bfloat16 row
// conversion is then the larger part of the work, which is why it is written out in vectors (lanes.h).
#pragma once

#include "lanes.h"

// Elements that a thread takes at least: below that, waking the pool (about 5 us) costs more than the rows.
constexpr int64_t kGrain = 1 << 14;  // tune: 4096 16384 65536
// Pieces that a backward is cut into at most. Each sums its own dweight, so that the sum depends on the shape and not on the threads.
constexpr int64_t kParts = 64;  // tune: 16 64 256
// Elements of the rows that are summed before the first of them is scaled.
constexpr int64_t kTogether = 512;  // tune: 1 512 1024 2048
// Elements that are added up before their sum joins the row's. Equal terms are all rounded the same way: over 2048 of them a lane's one sum was off by
// 16 units of the last place on AVX2, and so was dx.
constexpr int64_t kStretch = 16 * kBlock;

// The sum of a row's terms: part(begin, n) gives that of n of them.
template <typename Part>
float row_sum(int64_t D, const Part& part) {
  Pair sum{};
  for (int64_t begin = 0; begin < D; begin += kStretch) sum = sum + part(begin, std::min(kStretch, D - begin));
  return sum_of(sum);
}

// 1 / sqrt(mean(x^2) + eps)
template <typename T>
float row_rstd(const T* x, int64_t D, float eps) {
  const float squares = row_sum(D, [&](int64_t begin, int64_t n) {
    Pair sum{};
    for_each_block(n, [&](int64_t, auto read, auto) { sum = sum + read(x + begin) * read(x + begin); });
    return sum;
  });
  return 1.f / std::sqrt(squares / static_cast<float>(D) + eps);
}

// y = x * rstd * weight
template <typename T>
void row_scale(const T* x, const float* weight, float rstd, T* y, int64_t D) {
  for_each_block(D, [&](int64_t, auto read, auto write) {
    write(y, weight == nullptr ? read(x) * rstd : read(x) * rstd * to_lanes<T>(read(weight)));
  });
}

// Backward of a row takes two passes. With n = x * rstd and g = dy * weight:
//
//   c = rstd^2 * mean(g * x)     dx = rstd * (g - n * mean(g * n)) = rstd * (g - x * c)     dweight += dy * n
//
// kWeight: there is a weight.

// The first pass: c, the one number of dx that takes the whole row.
template <bool kWeight, typename T>
float row_c(const T* dy, const T* x, const float* weight, float rstd, int64_t D) {
  const float dot = row_sum(D, [&](int64_t begin, int64_t n) {
    Pair sum{};
    for_each_block(n, [&](int64_t, auto read, auto) {
      sum = sum + (kWeight ? read(dy + begin) * to_lanes<T>(read(weight + begin)) : read(dy + begin)) * read(x + begin);
    });
    return sum;
  });
  return dot * rstd * rstd / static_cast<float>(D);
}

// The second pass: dx and dweight. kJoin: another gradient, `joining`, reaches x too, and dx is the sum of both.
template <bool kWeight, bool kJoin, typename T>
void row_dx(const T* dy, const T* x, const float* weight, float rstd, float c, const T* joining, T* dx, float* dweight,
            int64_t D) {
  for_each_block(D, [&](int64_t, auto read, auto write) {
    const Pair d = read(dy), v = read(x);
    const Pair through = ((kWeight ? d * to_lanes<T>(read(weight)) : d) - v * c) * rstd;
    write(dx, kJoin ? read(joining) + through : through);
    if constexpr (kWeight) write(dweight, read(dweight) + from_lanes<T>(d * (v * rstd)));
  });
}

// Calls first(r) and then second(r) for every row r from begin to end. Of short rows several have their first call before any has its second,
// so that one row's sum, root and division run while the next row is read (1.4x at D = 256).
template <typename First, typename Second>
void in_two_passes(int64_t begin, int64_t end, int64_t D, First&& first, Second&& second) {
  const int64_t together = std::clamp<int64_t>(kTogether / std::max<int64_t>(1, D), 1, kTogether);
  for (int64_t r = begin; r < end; r += together) {
    const int64_t stop = std::min(r + together, end);
    for (int64_t i = r; i < stop; ++i) first(i);
    for (int64_t i = r; i < stop; ++i) second(i);
  }
}

// Forward of all rows, on all threads: before(r) makes the row x + r * D if it has still to be made.
template <typename T, typename Before>
void rows_forward(const T* x, const float* weight, T* y, float* rstd, int64_t R, int64_t D, float eps, Before&& before) {
  const int64_t grain = std::max<int64_t>(1, kGrain / std::max<int64_t>(1, D));
  torch::stable::parallel_for(0, R, grain, [&](int64_t begin, int64_t end) {
    in_two_passes(
        begin, end, D,
        [&](int64_t r) {
          before(r);
          rstd[r] = row_rstd(x + r * D, D, eps);
        },
        [&](int64_t r) { row_scale(x + r * D, weight, rstd[r], y + r * D, D); });
  });
}

// Backward of all rows, on all threads: writes dx (R, D), adds into dweight (D,) if there is a weight.
template <bool kWeight, bool kJoin, typename T>
void rows_backward(const T* dy, const T* x, const float* weight, const float* rstd, const T* joining, T* dx, float* dweight,
                   int64_t R, int64_t D) {
  const int64_t parts = std::clamp<int64_t>(std::min(R * D / kGrain, R / 8), 1, kParts);
  std::vector<float> sums(static_cast<size_t>(kWeight ? parts * D : 0), 0.f), c(static_cast<size_t>(R));
  torch::stable::parallel_for(0, parts, 1, [&](int64_t first, int64_t last) {
    for (int64_t part = first; part < last; ++part) {
      float* sum = kWeight ? sums.data() + part * D : nullptr;
      in_two_passes(
          R * part / parts, R * (part + 1) / parts, D,
          [&](int64_t r) { c[r] = row_c<kWeight>(dy + r * D, x + r * D, weight, rstd[r], D); },
          [&](int64_t r) {
            const T* join = kJoin ? joining + r * D : nullptr;
            row_dx<kWeight, kJoin>(dy + r * D, x + r * D, weight, rstd[r], c[r], join, dx + r * D, sum, D);
          });
    }
  });
  if constexpr (kWeight)
    for (int64_t part = 0; part < parts; ++part)
      for (int64_t i = 0; i < D; ++i) dweight[i] += sums[part * D + i];
}

// How many rows x (..., D) has.
inline int64_t rows_of(const Tensor& x) {
  int64_t rows = 1;
  for (int64_t i = 0; i + 1 < x.dim(); ++i) rows *= x.size(i);
  return rows;
}

// dy, x, joining (..., D); weight (D,) float32; rstd (R,) float32 -> dx (..., D), dweight (D,) float32, zeros without a weight
inline std::tuple<Tensor, Tensor> norm_backward(const Tensor& dy, const Tensor& x, const std::optional<Tensor>& weight,
                                                const Tensor& rstd, const std::optional<Tensor>& joining) {
  const int64_t R = rows_of(x), D = x.size(-1);
  Tensor dx = torch::stable::empty_like(x);
  Tensor dweight = torch::stable::new_zeros(x, {D}, ScalarType::Float);
  dispatch_float(x.scalar_type(), "rms_norm or add_rms_norm, backward", [&]<typename T>() {
    const auto run = [&]<bool kWeight, bool kJoin>() {
      rows_backward<kWeight, kJoin, T>(reads<T>(dy), reads<T>(x), kWeight ? reads<float>(*weight) : nullptr,
                                       reads<float>(rstd), kJoin ? reads<T>(*joining) : nullptr, writes<T>(dx),
                                       writes<float>(dweight), R, D);
    };
    if (weight && joining) run.template operator()<true, true>();
    else if (weight) run.template operator()<true, false>();
    else if (joining) run.template operator()<false, true>();
    else run.template operator()<false, false>();
  });
  return {dx, dweight};
}

// `name` begins every message: the op and the argument.
inline void check_rows(const char* name, const Tensor& t, const Tensor& like) {
  STD_TORCH_CHECK(t.dim() >= 1 && t.is_contiguous(), name, ": expected a contiguous (..., D), got ", describe(t));
  STD_TORCH_CHECK(t.sizes().equals(like.sizes()) && t.scalar_type() == like.scalar_type(), name, ": expected ",
                  describe(like), ", got ", describe(t));
}
inline void check_vector(const char* name, const Tensor& t, int64_t n) {
  STD_TORCH_CHECK(t.dim() == 1 && t.is_contiguous() && t.size(0) == n && t.scalar_type() == ScalarType::Float, name,
                  ": expected a contiguous float32 vector of ", n, " elements, got ", describe(t));
}
