// Products in steps of one 32-bit lane: of one float32, or of the two bfloat16 that fit into it. An instruction of AVX512-BF16 multiplies two pairs of
// bfloat16 and adds both products to the float32 sum of their lane. Code that only moves lanes serves both types; all sums are float32.
//
// On a Zen 4 core the instruction brings 225 GFLOP/s in place of 100. Zen 4 and later have it, and Intel's Cooper Lake and Xeons since Sapphire
// Rapids, but not Ice Lake between them; elsewhere bfloat16 is made float32 before it is multiplied. Where there is AMX too, tiles.h multiplies.
#pragma once

#include "lanes.h"

// Terms of a sum that a lane takes in a step.
template <typename T>
constexpr int64_t kTerms = sizeof(float) / sizeof(T);
template <typename T>
constexpr int64_t steps_of(int64_t terms) { return ceil_div(terms, kTerms<T>); }

typedef float unaligned_float __attribute__((aligned(1), may_alias));
typedef uint32_t unaligned_word __attribute__((aligned(1), may_alias));

// Whether this build has that instruction, and this processor too.
inline bool multiplies_pairs() {
#if defined(__AVX512F__)
  return __builtin_cpu_supports("avx512bf16");
#else
  return false;
#endif
}

// sum + each lane's products of the terms at `left`, which are the same for all lanes, with its terms of `right`.
template <typename T>
inline floats add_products(floats sum, const void* left, floats right) {
  if constexpr (kTerms<T> == 1) return sum + right * *static_cast<const unaligned_float*>(left);
#if defined(__AVX512F__)
  // Written out, so that one build serves processors with and without it.
  asm("vdpbf16ps %2, %1, %0" : "+v"(sum) : "v"(words{} + *static_cast<const unaligned_word*>(left)), "v"(right));
#endif
  return sum;
}

// Two rows of bfloat16 -> both elements of a column in one lane, first the even columns and then the odd ones, as a Pair has its elements.
inline Pair zipped(const bf16* above, const bf16* below) {
  const words a = *reinterpret_cast<const unaligned_words*>(above), b = *reinterpret_cast<const unaligned_words*>(below);
  return {reinterpret_cast<floats>((a & 0xffffu) | b << 16), reinterpret_cast<floats>(a >> 16 | (b & 0xffff0000u))};
}

// Transposes the square at `from`, whose rows are `stride` apart, to `to`.
inline void transpose(const float* from, int64_t stride, float* to, int64_t to_stride) {
  floats rows[kLanes];
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) rows[i] = *reinterpret_cast<const unaligned_floats*>(from + i * stride);
  transpose(rows);
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) *reinterpret_cast<unaligned_floats*>(to + i * to_stride) = rows[i];
}
// The same of kBlock x kBlock bfloat16: even[i] becomes column 2 i of the square, odd[i] column 2 i + 1, each a vector.
inline void transpose(const bf16* from, int64_t stride, floats (&even)[kLanes], floats (&odd)[kLanes]) {
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    const Pair pair = zipped(from + 2 * i * stride, from + (2 * i + 1) * stride);
    even[i] = pair.even, odd[i] = pair.odd;
  }
  transpose(even);
  transpose(odd);
}
inline void transpose(const bf16* from, int64_t stride, bf16* to, int64_t to_stride) {
  floats even[kLanes], odd[kLanes];
  transpose(from, stride, even, odd);
#pragma GCC unroll 16
  for (int i = 0; i < kLanes; ++i) {
    *reinterpret_cast<unaligned_floats*>(to + 2 * i * to_stride) = even[i];
    *reinterpret_cast<unaligned_floats*>(to + (2 * i + 1) * to_stride) = odd[i];
  }
}

// Which of kBlock lanes holds column c of a Pair of T.
template <typename T>
constexpr int64_t lane_of(int64_t c) {
  return std::is_same_v<T, bf16> ? c % 2 * kLanes + c / 2 : c;
}
