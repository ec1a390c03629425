// Cross-entropy of rows of logits on the CPU, one fused pass: softcap, log-sum-exp, loss, and the gradient of the loss with respect
// to the logits, written over the logits. The matrix products around it are torch's (kernels/linear_cross_entropy.py).
//
//   y = c tanh(z / c)   (or z)      loss = log(sum exp y) - y[target]
//   dz = (softmax(y) - onehot(target)) * (1 - tanh^2(z / c))
//
// dz is left without its row's factor 1 / sum exp y, which comes apart: so a row is read and written once (and read once before, for its largest
// logit, where no small cap bounds them).
//
// Bound: 2 b bytes a logit of b bytes (one read, one write; one read more without a small cap), or one exp, one tanh and one reciprocal: 0.71 ns
// a bfloat16 logit on one core of a Zen 4, 5.6 GB/s, so that arithmetic binds. The caller hands over chunks of 1,024 rows as a product has left
// them, 17 MB at V = 8192: in the last cache at best (smaller ones cost the product more than they save here: CHUNK).
// torch's eager composition passes over the N x V logits about twelve times, each time into fresh memory.
#include "lanes.h"

#include <sys/mman.h>
#include <unistd.h>

#include <numeric>

namespace {

// Logits that a thread takes at least: below that, waking the pool (about 5 us) costs more than the rows.
constexpr int64_t kGrain = 1 << 15;  // tune: 8192 32768 131072

constexpr int64_t kIgnored = -100;
// Up to this cap no row needs its maximum. Beyond it 1 / sum, which joins the upstream gradient, may bring h below what bfloat16 products take for
// zero (1e-38): e^-40 over a million words and a million tokens leaves 4e-30.
constexpr float kBounded = 40.f;

// 1 / x. On AVX-512 from an estimate of 14 bits by one of Newton's steps: 4 cycles a vector, where a division takes 16 (Zen 4).
inline Pair reciprocal(Pair x) {
#if defined(__AVX512F__)
  const auto estimate_of = [](floats v) { return reinterpret_cast<floats>(_mm512_rcp14_ps(reinterpret_cast<__m512>(v))); };
  const Pair estimate{estimate_of(x.even), estimate_of(x.odd)};
  return estimate * (2.f - x * estimate);
#else
  return {1.f / x.even, 1.f / x.odd};
#endif
}

// tanh x to a relative error of 1e-6: one rational function (Eigen's coefficients), 40 % fewer instructions than fast_tanh, which
// needs an exponential. At the clamp it is 1 + 7e-7, above 1 however it is rounded, so that 1 - tanh^2 can be told to be nothing. NaN stays NaN.
inline Pair rational_tanh(Pair x) {
  const auto clamped = [](floats v) {
    const floats edge = floats{} + 10.4f;
    return larger(-edge, smaller(edge, v));
  };
  x = {clamped(x.even), clamped(x.odd)};
  const Pair s = x * x;
  Pair p = s * -2.76076847742355e-16f + 2.00018790482477e-13f;
  p = p * s - 8.60467152213735e-11f;
  p = p * s + 5.12229709037114e-08f;
  p = p * s + 1.48572235717979e-05f;
  p = p * s + 6.37261928875436e-04f;
  p = p * s + 4.89352455891786e-03f;
  Pair q = s * 1.19825839466702e-06f + 1.18534705686654e-04f;
  q = q * s + 2.26843463243900e-03f;
  q = q * s + 4.89352518554385e-03f;
  return x * p * reciprocal(q);
}

// What becomes of logits z: y, capped or not; e^(y - shift); and the slope dy/dz.
struct Terms {
  Pair y, e, slope;
};

// Terms of logits of one row. Without a cap both numbers are 0, and neither is read.
struct Softcap {
  float cap, inverse;
  explicit Softcap(std::optional<double> c) : cap(static_cast<float>(c.value_or(0.))), inverse(c ? 1.f / cap : 0.f) {}

  template <bool kCapped>
  Terms terms(Pair z, float shift) const {
    if constexpr (!kCapped) return {z, exp_of(z - shift), Pair{} + 1.f};
    const Pair t = rational_tanh(z * inverse), y = t * cap, slope = 1.f - t * t;
    // Else a saturated logit had a slope of -1e-6, which is all there is in the gradient of a row of them.
    return {y, exp_of(y - shift), {larger(floats{}, slope.even), larger(floats{}, slope.odd)}};
  }
};

// What is subtracted before every exponential of the row: its largest y, or nothing where the cap bounds them all.
template <bool kCapped, typename T>
float shift_of(const T* z, int64_t V, const Softcap& softcap) {
  if (kCapped && softcap.cap <= kBounded) return 0.f;
  float top = -std::numeric_limits<float>::infinity();
#pragma omp simd reduction(max : top)
  for (int64_t i = 0; i < V; ++i) top = std::max(top, load(z + i));
  return softcap.terms<kCapped>(Pair{} + top, 0.f).y.even[0];
}

// The loss of one row of V logits. kGradient: over z comes dz without the row's factor 1 / sum, which `scale` gets. So a row is passed over once, and
// no row of floats stands between its logits and its gradient (0.78 ns a bfloat16 logit in place of 0.90, on one core of a Zen 4).
template <bool kCapped, bool kGradient, typename T>
float loss_of(std::conditional_t<kGradient, T, const T>* z, int64_t V, int64_t target, const Softcap& softcap, float* scale) {
  const float shift = shift_of<kCapped, T>(z, V, softcap);
  const Terms wanted = softcap.terms<kCapped>(Pair{} + load(z + target), shift);  // the same in all lanes
  Pair sums{};
  const auto block = [&](Pair v, auto write) {
    const Terms terms = softcap.terms<kCapped>(v, shift);
    if constexpr (kGradient) write(z, terms.e * terms.slope);
    return terms.e;
  };
  const int64_t whole = V / kBlock * kBlock;
  for_each_block<false>(whole, [&](int64_t, auto read, auto write) { sums = sums + block(read(z), write); });
  float sum = sum_of(sums);
  if (const int64_t n = V - whole) {
    float e[kBlock];
    store_pair(e, from_lanes<T>(block(load_pair(z + whole, n), [&](auto* p, Pair v) { store_pair(p + whole, v, n); })));
    sum = std::accumulate(e, e + n, sum);
  }
  if constexpr (kGradient) {
    store(z + target, (wanted.e.even[0] - sum) * wanted.slope.even[0]);
    *scale = 1.f / sum;
  }
  return (shift - wanted.y.even[0]) + std::log(sum);
}

// Calls row(z, n) for every row n whose target counts and ignored(z, n) for the others, in parallel.
template <typename T, typename Row, typename Ignored>
void for_each_row(Tensor& logits, const Tensor& targets, const Row& row, const Ignored& ignored) {
  const int64_t N = logits.size(0), V = logits.size(1), stride = logits.stride(0);
  T* z = writes<T>(logits);
  const int64_t* target = reads<int64_t>(targets);
  torch::stable::parallel_for(0, N, std::max<int64_t>(1, kGrain / std::max<int64_t>(1, V)), [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n)
      if (target[n] == kIgnored) ignored(z + n * stride, n);
      else row(z + n * stride, n);
  });
}

void check(const Tensor& logits, const Tensor& targets, const Tensor& loss, const Tensor& scale) {
  STD_TORCH_CHECK(logits.dim() == 2 && logits.stride(1) == 1,
                  "linear_cross_entropy: expected logits (N, V) with contiguous rows, got ", describe(logits));
  const int64_t N = logits.size(0);
  STD_TORCH_CHECK(targets.scalar_type() == ScalarType::Long && targets.is_contiguous() && targets.numel() == N,
                  "linear_cross_entropy: expected ", N, " contiguous int64 targets, one a row, got ", describe(targets));
  for (const Tensor* out : {&loss, &scale})
    STD_TORCH_CHECK(out->scalar_type() == ScalarType::Float && out->is_contiguous() && out->numel() == N,
                    "linear_cross_entropy: expected room for ", N, " contiguous float32 numbers, one a row, got ", describe(*out));
}

// logits (N, V), targets (N,) in 0..V-1 or -100 -> loss (N,) written
void loss(Tensor logits, const Tensor& targets, std::optional<double> cap, Tensor out) {
  check(logits, targets, out, out);
  const int64_t V = logits.size(1);
  const Softcap softcap(cap);
  const int64_t* target = reads<int64_t>(targets);
  float* losses = writes<float>(out);
  dispatch_float(logits.scalar_type(), "linear_cross_entropy", [&]<typename T>() {
    for_each_row<T>(
        logits, targets,
        [&](const T* z, int64_t n) {
          losses[n] = cap ? loss_of<true, false, T>(z, V, target[n], softcap, nullptr) : loss_of<false, false, T>(z, V, target[n], softcap, nullptr);
        },
        [&](T*, int64_t n) { losses[n] = 0.f; });
  });
}

// logits (N, V), targets (N,) -> loss (N,) written, scale (N,) written, logits overwritten: times their row's scale they are dz
void loss_and_gradient(Tensor logits, const Tensor& targets, std::optional<double> cap, Tensor out, Tensor scale) {
  check(logits, targets, out, scale);
  STD_TORCH_CHECK(logits.scalar_type() != ScalarType::Half,
                  "linear_cross_entropy: expected float32 or bfloat16 where a gradient is made: float16 cannot hold e^softcap");
  const int64_t V = logits.size(1);
  const Softcap softcap(cap);
  const int64_t* target = reads<int64_t>(targets);
  float *losses = writes<float>(out), *scales = writes<float>(scale);
  dispatch_float(logits.scalar_type(), "linear_cross_entropy", [&]<typename T>() {
    for_each_row<T>(
        logits, targets,
        [&](T* z, int64_t n) {
          losses[n] = cap ? loss_of<true, true, T>(z, V, target[n], softcap, scales + n) : loss_of<false, true, T>(z, V, target[n], softcap, scales + n);
        },
        [&](T* z, int64_t n) {
          std::memset(static_cast<void*>(z), 0, static_cast<size_t>(V) * sizeof(T));
          losses[n] = scales[n] = 0.f;
        });
  });
}

// Uninitialised (rows, columns) of like's dtype on 2 MB pages where the system offers them. A fresh 134 MB buffer takes 33 thousand page
// faults of 4 KB: 59 ms here on one thread and 110 on two. With this advice it takes 64 faults and the time to zero the memory.
Tensor new_buffer(const Tensor& like, int64_t rows, int64_t columns) {
  Tensor buffer = torch::stable::new_empty(like, {rows, columns});
  const int64_t bytes = rows * columns * static_cast<int64_t>(like.element_size());
  if (bytes >= 32 << 20) {  // malloc maps a block of this size by itself, unless what was freed has room for it: that has its pages already
    const int64_t page = sysconf(_SC_PAGESIZE), address = reinterpret_cast<intptr_t>(buffer.mutable_data_ptr());
    const int64_t begin = round_up(address, page), end = (address + bytes) / page * page;
    madvise(reinterpret_cast<void*>(begin), static_cast<size_t>(end - begin), MADV_HUGEPAGE);  // a system that declines has lost nothing
  }
  return buffer;
}

}  // namespace

LAB_SCHEMAS(m) {
  m.def("loss(Tensor logits, Tensor targets, float? softcap, Tensor(a!) out) -> ()");
  m.def("loss_and_gradient(Tensor(a!) logits, Tensor targets, float? softcap, Tensor(b!) out, Tensor(c!) scale) -> ()");
  m.def("new_buffer(Tensor like, int rows, int columns) -> Tensor");
}

LAB_KERNELS(CPU, m) {
  m.impl("loss", TORCH_BOX(&loss));
  m.impl("loss_and_gradient", TORCH_BOX(&loss_and_gradient));
  m.impl("new_buffer", TORCH_BOX(&new_buffer));
}
