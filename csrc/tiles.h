// AMX: eight registers of 16 rows of 64 bytes, which Intel's server processors have since Sapphire Rapids. They are used where a build is for them
// (kernels/jit.py, which asks the system for them).
//
// One instruction adds to 16 x 16 float sums the products of 16 rows of 32 bfloat16 with 32 rows of 16, whose pairs lie zipped as pairs.h has them:
// 16,384 flops in 16 cycles, where a vector instruction brings 64. Four registers hold the sums of a square of 32 x 32, two the 32 rows of its left
// factor and two the 32 columns of its right one. So 32 terms take four such instructions and four loads: 27 ns at best, and 40 to 110 while others
// use the core (a virtual Xeon).
#pragma once

#include "pairs.h"

#if defined(__AMX_BF16__)
template <typename T>
constexpr bool kTiled = std::is_same_v<T, bf16>;
#else
template <typename T>
constexpr bool kTiled = false;
#endif

constexpr int kSide = 32;                  // rows, columns and terms
constexpr int64_t kTileSteps = kSide / 2;  // steps (pairs.h), of two terms each, that one of these instructions takes

// sums (kSide, kSide) = left times right, or += if `more`, over `steps` steps, a multiple of kTileSteps. `left` has kSide rows, their terms side by
// side; `right` has a row a step, of kSide columns with both terms of the step in one lane. The rows of each are `..._row` floats apart.
void sum_square(const float* left, int64_t left_row, const float* right, int64_t right_row, int64_t steps, float* sums, int64_t sums_row, bool more);

#if defined(__AMX_BF16__)
// A row of a square's sums is a Pair (lanes.h), and a row of one register a vector.
static_assert(kSide == kBlock && kTileSteps == kLanes);

// Lends the thread its registers for the life of this object; afterwards none has contents, which every change of threads would have to save.
template <typename T>
class Tiles {
 public:
  Tiles() {
    if constexpr (!kTiled<T>) return;
    struct alignas(64) {
      uint8_t palette = 1, first_row = 0, reserved[14]{};
      uint16_t bytes[16]{};
      uint8_t rows[16]{};
    } shape;
    std::fill_n(shape.bytes, 8, 64);
    std::fill_n(shape.rows, 8, 16);
    asm volatile("ldtilecfg %0" : : "m"(shape));
  }
  ~Tiles() {
    if constexpr (kTiled<T>) asm volatile("tilerelease");
  }
  Tiles(const Tiles&) = delete;
};

template <int kTile>
inline void clear_tile() { asm volatile("tilezero %%tmm%c0" : : "i"(kTile)); }
// AddressSanitizer sees nothing of what inline assembly touches: it is shown both ends of each row.
inline void show_tile([[maybe_unused]] const void* at, [[maybe_unused]] int64_t stride) {
#if defined(__SANITIZE_ADDRESS__)
  for (int row = 0; row < 16; ++row)
    for (const int byte : {0, 63}) static_cast<void>(static_cast<const volatile char*>(at)[row * stride + byte]);
#endif
}
// Rows are `stride` bytes apart.
template <int kTile>
inline void load_tile(const void* from, int64_t stride) {
  show_tile(from, stride);
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(kTile) : "memory");
}
template <int kTile>
inline void store_tile(void* to, int64_t stride) {
  show_tile(to, stride);
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(kTile) : "memory");
}
template <int kSums, int kLeft, int kRight>
inline void multiply_tiles() { asm volatile("tdpbf16ps %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kSums), "i"(kLeft), "i"(kRight)); }

inline void sum_square(const float* left, int64_t left_row, const float* right, int64_t right_row, int64_t steps, float* sums, int64_t sums_row, bool more) {
  constexpr int64_t kFloat = sizeof(float);
  float* const lower = sums + 16 * sums_row;
  const int64_t left_bytes = left_row * kFloat, right_bytes = right_row * kFloat, sums_bytes = sums_row * kFloat;
  if (more) {
    load_tile<0>(sums, sums_bytes), load_tile<1>(sums + kLanes, sums_bytes);
    load_tile<2>(lower, sums_bytes), load_tile<3>(lower + kLanes, sums_bytes);
  } else {
    clear_tile<0>(), clear_tile<1>(), clear_tile<2>(), clear_tile<3>();
  }
  for (int64_t k = 0; k < steps; k += kTileSteps, left += kTileSteps, right += kTileSteps * right_row) {
    load_tile<4>(left, left_bytes), load_tile<6>(right, right_bytes);
    load_tile<7>(right + kLanes, right_bytes), load_tile<5>(left + 16 * left_row, left_bytes);
    multiply_tiles<0, 4, 6>(), multiply_tiles<1, 4, 7>(), multiply_tiles<2, 5, 6>(), multiply_tiles<3, 5, 7>();
  }
  store_tile<0>(sums, sums_bytes), store_tile<1>(sums + kLanes, sums_bytes);
  store_tile<2>(lower, sums_bytes), store_tile<3>(lower + kLanes, sums_bytes);
}

#else

template <typename T>
class Tiles {};

#endif
