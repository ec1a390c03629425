// Rows of any floating type as vectors of floats, written out by hand: with the compiler's own vector code, sums and conversions are the larger part
// of the work of a short row (64 bfloat16 channels normalised and rotated: 20 ns; with what is here, 10 ns).
//
// Two bfloat16 lie in one 32-bit lane. A shift makes a float of the lower one, a mask makes one of the upper one, and no element changes its lane: of
// 2 * kLanes channels `even` holds the even ones and `odd` the odd ones. Of a row of floats `even` is simply the first half. What is combined with a
// row channel by channel must lie as the row's elements do: `to_lanes` brings it there.
#pragma once

#include "lab.h"

#if defined(__AVX512F__)
#include <immintrin.h>
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
constexpr int kBlock = 2 * kLanes;  // channels of a Pair

using floats = float __attribute__((vector_size(kLanes * sizeof(float))));
using words = uint32_t __attribute__((vector_size(kLanes * sizeof(float))));
// typedef, because clang ignores `aligned` in an alias
typedef float unaligned_floats __attribute__((vector_size(kLanes * sizeof(float)), aligned(1), may_alias));
typedef uint32_t unaligned_words __attribute__((vector_size(kLanes * sizeof(float)), aligned(1), may_alias));

struct Pair {
  floats even, odd;
};
inline Pair operator+(Pair a, Pair b) { return {a.even + b.even, a.odd + b.odd}; }
inline Pair operator-(Pair a, Pair b) { return {a.even - b.even, a.odd - b.odd}; }
inline Pair operator*(Pair a, Pair b) { return {a.even * b.even, a.odd * b.odd}; }
inline Pair operator*(Pair a, float b) { return {a.even * b, a.odd * b}; }
inline Pair operator+(Pair a, float b) { return {a.even + b, a.odd + b}; }
inline Pair operator-(Pair a, float b) { return {a.even - b, a.odd - b}; }
inline Pair operator-(float a, Pair b) { return {a - b.even, a - b.odd}; }

// The larger and the smaller of two, lane by lane; b where one of them is a NaN. GCC 12 makes a comparison and a choice of this for AVX-512, where
// one instruction does it.
inline floats larger(floats a, floats b) {
#if defined(__AVX512F__)
  return reinterpret_cast<floats>(_mm512_max_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b)));
#else
  return a > b ? a : b;
#endif
}
inline floats smaller(floats a, floats b) {
#if defined(__AVX512F__)
  return reinterpret_cast<floats>(_mm512_min_ps(reinterpret_cast<__m512>(a), reinterpret_cast<__m512>(b)));
#else
  return a < b ? a : b;
#endif
}

inline Pair load_pair(const float* p) {
  return {*reinterpret_cast<const unaligned_floats*>(p), *reinterpret_cast<const unaligned_floats*>(p + kLanes)};
}
inline void store_pair(float* p, Pair v) {
  *reinterpret_cast<unaligned_floats*>(p) = v.even;
  *reinterpret_cast<unaligned_floats*>(p + kLanes) = v.odd;
}

inline Pair load_pair(const bf16* p) {
  const words w = *reinterpret_cast<const unaligned_words*>(p);
  return {reinterpret_cast<floats>(w << 16), reinterpret_cast<floats>(w & 0xffff0000u)};
}
// Rounds to nearest, ties away from zero: 4 instructions a Pair, where ties to even and a test for NaN take 18. A NaN must have zeros in its lower
// half, or the carry could make a number of it; NaNs that arithmetic makes have them, and NaNs of bfloat16.
inline void store_pair(bf16* p, Pair v) {
  const words even = reinterpret_cast<words>(v.even) + 0x8000u, odd = reinterpret_cast<words>(v.odd) + 0x8000u;
  *reinterpret_cast<unaligned_words*>(p) = even >> 16 | (odd & 0xffff0000u);
}
// If T is bf16, rounds to it before the store, ties to even. Many sums of two bfloat16 are ties: rounded away from zero, a residual stream would drift.
template <typename T>
Pair to_even(Pair v) {
  if constexpr (!std::is_same_v<T, bf16>) return v;
  const auto round = [](floats x) {
    const words u = reinterpret_cast<words>(x);
    return reinterpret_cast<floats>((u + 0x7fffu + (u >> 16 & 1u)) & 0xffff0000u);
  };
  return {round(v.even), round(v.odd)};
}

// Half precision has its bits in other places: it is converted element by element, which the compiler vectorises. `even` is the first half.
inline Pair load_pair(const fp16* p) {
  float wide[kBlock];
#pragma omp simd
  for (int i = 0; i < kBlock; ++i) wide[i] = load(p + i);
  return load_pair(wide);
}
inline void store_pair(fp16* p, Pair v) {
  float wide[kBlock];
  store_pair(wide, v);
#pragma omp simd
  for (int i = 0; i < kBlock; ++i) store(p + i, wide[i]);
}

// The end of a row, n < kBlock channels: read as if zeros followed, and only n are written.
template <typename T>
Pair load_pair(const T* p, int64_t n) {
  T block[kBlock] = {};
  std::copy_n(p, n, block);
  return load_pair(block);
}
template <typename T>
void store_pair(T* p, Pair v, int64_t n) {
  T block[kBlock];
  store_pair(block, v);
  std::copy_n(block, n, p);
}

// Calls each(i, read, write) for every block of a row of D channels. i is the block's first channel; of a row that begins at p, read(p) and write(p, v)
// move the block's channels, as many as there are.
// kTail: D may be no multiple of kBlock. Rows of one or two blocks are 1.2 times as fast without the code for that.
// Always inlined: called twice, it would become a function under GCC, and the sums of `each` would lie in memory (a norm's backward took 1.5 times
// as long).
template <bool kTail = true, typename Each>
[[gnu::always_inline]] inline void for_each_block(int64_t D, Each&& each) {
  const int64_t whole = D / kBlock * kBlock;
  for (int64_t i = 0; i < whole; i += kBlock)
    each(i, [i](const auto* p) { return load_pair(p + i); }, [i](auto* p, Pair v) { store_pair(p + i, v); });
  if constexpr (kTail)
    if (const int64_t n = D - whole)
      each(whole, [=](const auto* p) { return load_pair(p + whole, n); }, [=](auto* p, Pair v) { store_pair(p + whole, v, n); });
}

// The sum of all lanes, by halves that stay vectors: 8 instructions for 16 lanes, where GCC makes 30 of a loop over an array of them.
template <typename Half, typename Whole>
Half folded(Whole v) {
  Half halves[2];
  static_assert(sizeof halves == sizeof v);
  std::memcpy(halves, &v, sizeof v);
  return halves[0] + halves[1];
}
inline float sum_of(floats v) {
  using four = float __attribute__((vector_size(16)));
#if defined(__AVX512F__)
  using eight = float __attribute__((vector_size(32)));
  const four fours = folded<four>(folded<eight>(v));
#elif defined(__AVX__)
  const four fours = folded<four>(v);
#else
  const four fours = v;
#endif
  return (fours[0] + fours[2]) + (fours[1] + fours[3]);
}
inline float sum_of(Pair v) { return sum_of(v.even + v.odd); }

// e^x for x of at most 88, otherwise as fast_exp (lab.h). Of a Pair, because the next multiply-add waits for the last: of two vectors by turns it
// waits half as long (the row pass of the loss takes 0.92 of the time).
inline Pair exp_of(Pair x) {
  const Pair shifted = x * 1.44269504f + 12582912.f, n = shifted - 12582912.f;  // n: the integer next to x / ln 2
  const Pair r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  Pair p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.f;
  const auto times_power = [](floats x, floats p, floats shifted) {
    const words power = (reinterpret_cast<words>(shifted) - (0x4b400000u - 127u)) << 23;  // 2^n
    return x < -87.33654f ? floats{} : p * reinterpret_cast<floats>(power);
  };
  return {times_power(x.even, p.even, shifted.even), times_power(x.odd, p.odd, shifted.odd)};
}

// 0, 1, 2, ...
inline words lane_numbers() {
  return []<uint32_t... i>(std::integer_sequence<uint32_t, i...>) { return words{i...}; }(std::make_integer_sequence<uint32_t, kLanes>{});
}

// Lane i of the result is lane From{}(i) of a followed by b. GCC 11 and clang have no spelling of this in common.
template <typename From>
floats picked(floats a, floats b, From) {
  return [&]<uint32_t... i>(std::integer_sequence<uint32_t, i...>) {
#ifdef __clang__
    return __builtin_shufflevector(a, b, From{}(i)...);
#else
    return __builtin_shuffle(a, b, words{From{}(i)...});
#endif
  }(std::make_integer_sequence<uint32_t, kLanes>{});
}
constexpr auto kEvens = [](uint32_t i) { return 2 * i; };
constexpr auto kOdds = [](uint32_t i) { return 2 * i + 1; };
constexpr auto kLowInterleaved = [](uint32_t i) { return i / 2 + i % 2 * kLanes; };
constexpr auto kHighInterleaved = [](uint32_t i) { return kLanes / 2 + i / 2 + i % 2 * kLanes; };

// A kLanes x kLanes square, one vector a row -> its transpose. Each round interleaves rows that lie half the square apart, which rotates the bits
// of (row, column) by one; after log2(kLanes) rounds row and column have changed places.
inline void transpose(floats (&rows)[kLanes]) {
#pragma GCC unroll 4
  for (int round = 1; round < kLanes; round *= 2) {
    floats next[kLanes];
#pragma GCC unroll 8
    for (int i = 0; i < kLanes / 2; ++i) {
      next[2 * i] = picked(rows[i], rows[i + kLanes / 2], kLowInterleaved);
      next[2 * i + 1] = picked(rows[i], rows[i + kLanes / 2], kHighInterleaved);
    }
#pragma GCC unroll 16
    for (int i = 0; i < kLanes; ++i) rows[i] = next[i];
  }
}

// Floats in the order of channels -> in the order in which the lanes of a row of T have them. A NaN gets zeros in its lower half.
template <typename T>
Pair to_lanes(Pair in) {
  if constexpr (!std::is_same_v<T, bf16>) return in;
  const floats nan = floats{} + std::numeric_limits<float>::quiet_NaN();
  const floats even = picked(in.even, in.odd, kEvens), odd = picked(in.even, in.odd, kOdds);
  return {even == even ? even : nan, odd == odd ? odd : nan};
}
// And back.
template <typename T>
Pair from_lanes(Pair in) {
  if constexpr (!std::is_same_v<T, bf16>) return in;
  return {picked(in.even, in.odd, kLowInterleaved), picked(in.even, in.odd, kHighInterleaved)};
}

constexpr int64_t whole_blocks(int64_t n) { return round_up(n, kBlock); }

// n floats that many rows of T will be combined with, in the order of their lanes, and zeros to the end of the last block: in `to`, which has room
// for whole blocks, or `from` itself where that is the same already.
template <typename T>
const float* arrange(const float* from, float* to, int64_t n) {
  const auto block = [&](int64_t i, auto read, auto) { store_pair(to + i, to_lanes<T>(read(from))); };
  if (n % kBlock) for_each_block(n, block);
  else if constexpr (std::is_same_v<T, bf16>) for_each_block<false>(n, block);
  else return from;
  return to;
}
