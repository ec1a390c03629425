// Cross-entropy of rows of logits on the CPU, one fused pass: softcap, log-sum-exp, loss, and the gradient of the loss with respect
// to the logits, written over the logits. The matrix products around it are torch's (kernels/linear_cross_entropy.py).
//
//   y = c tanh(z / c)   (or z)      loss = log(sum exp y) - y[target]
//   dz = (softmax(y) - onehot(target)) * (1 - tanh^2(z / c))
//
// Bound: memory for rows that come from DRAM, else the arithmetic of one exp and one tanh a logit. A row (32 KB at V = 8192) stays in
// L1 from its first read to its last write, and the caller hands over chunks that a matrix product has just left in the cache.
// torch's eager composition passes over the N x V logits about twelve times, each time into fresh memory.
#include "lab.h"

#include <sys/mman.h>
#include <unistd.h>

namespace {

// Logits that a thread takes at least: below that, waking the pool (about 5 us) costs more than the rows.
constexpr int64_t kGrain = 1 << 15;  // tune: 8192 32768 131072

constexpr int64_t kIgnored = -100;
// Up to this cap no row needs its maximum: e^60 times a vocabulary of 10^12 is still a float.
constexpr float kBounded = 60.f;

// tanh x to a relative error of 4e-7: one rational function (Eigen's coefficients), 40 % fewer instructions than fast_tanh, which
// needs an exponential. Beyond the clamp tanh is 1 to the last bit.
inline float rational_tanh(float x) {
  x = std::min(std::max(x, -7.90531110763549805f), 7.90531110763549805f);
  const float s = x * x;
  float p = -2.76076847742355e-16f;
  p = p * s + 2.00018790482477e-13f;
  p = p * s - 8.60467152213735e-11f;
  p = p * s + 5.12229709037114e-08f;
  p = p * s + 1.48572235717979e-05f;
  p = p * s + 6.37261928875436e-04f;
  p = p * s + 4.89352455891786e-03f;
  float q = 1.19825839466702e-06f;
  q = q * s + 1.18534705686654e-04f;
  q = q * s + 2.26843463243900e-03f;
  q = q * s + 4.89352518554385e-03f;
  return x * p / q;
}

// What the softcap does to one logit: its value y and the slope dy/dz. A cap of 0 stands for none.
struct Softcap {
  float cap, inverse;
  explicit Softcap(std::optional<double> c) : cap(static_cast<float>(c.value_or(0.))), inverse(c ? 1.f / cap : 0.f) {}

  template <bool kCapped>
  float value(float z) const {
    return kCapped ? cap * rational_tanh(z * inverse) : z;
  }
  template <bool kCapped>
  float slope(float y) const {
    const float t = y * inverse;
    return kCapped ? 1.f - t * t : 1.f;
  }
};

// What is subtracted before every exponential of the row: its largest y, or nothing where the cap bounds them all.
template <bool kCapped, typename T>
float shift_of(const T* z, int64_t V, const Softcap& softcap) {
  if (kCapped && softcap.cap <= kBounded) return 0.f;
  float top = -std::numeric_limits<float>::infinity();
#pragma omp simd reduction(max : top)
  for (int64_t i = 0; i < V; ++i) top = std::max(top, load(z + i));
  return softcap.value<kCapped>(top);
}

template <bool kCapped, typename T>
float loss_of(const T* z, int64_t V, int64_t target, const Softcap& softcap) {
  const float shift = shift_of<kCapped>(z, V, softcap);
  float sum = 0.f;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < V; ++i) sum += fast_exp(softcap.value<kCapped>(load(z + i)) - shift);
  return shift + std::log(sum) - softcap.value<kCapped>(load(z + target));
}

// The same, and dz over z. `scratch` holds a row of floats between the two loops; for float logits it is the row itself.
template <bool kCapped, typename T>
float loss_and_gradient_of(T* z, float* scratch, int64_t V, int64_t target, const Softcap& softcap) {
  const float shift = shift_of<kCapped>(z, V, softcap);
  const float y_target = softcap.value<kCapped>(load(z + target));
  float sum = 0.f;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < V; ++i) {
    const float y = softcap.value<kCapped>(load(z + i)), e = fast_exp(y - shift);
    sum += e;
    scratch[i] = e * softcap.slope<kCapped>(y);
  }
  const float inverse = 1.f / sum;
  const float dz_target = scratch[target] * inverse - softcap.slope<kCapped>(y_target);
#pragma omp simd
  for (int64_t i = 0; i < V; ++i) store(z + i, scratch[i] * inverse);
  store(z + target, dz_target);
  return shift + std::log(sum) - y_target;
}

// Calls row(z, scratch, loss, target) for every row whose target counts and ignored(z) for the others, in parallel.
template <typename T, typename Row, typename Ignored>
void for_each_row(Tensor& logits, const Tensor& targets, Tensor& loss, const Row& row, const Ignored& ignored) {
  const int64_t N = logits.size(0), V = logits.size(1), stride = logits.stride(0);
  T* z = writes<T>(logits);
  const int64_t* target = reads<int64_t>(targets);
  float* out = writes<float>(loss);
  torch::stable::parallel_for(0, N, std::max<int64_t>(1, kGrain / std::max<int64_t>(1, V)), [&](int64_t begin, int64_t end) {
    std::vector<float> scratch(std::is_same_v<T, float> ? 0 : static_cast<size_t>(V));
    for (int64_t n = begin; n < end; ++n) {
      T* zn = z + n * stride;
      if (target[n] == kIgnored) {
        out[n] = 0.f;
        ignored(zn);
      } else {
        if constexpr (std::is_same_v<T, float>) out[n] = row(zn, zn, target[n]);
        else out[n] = row(zn, scratch.data(), target[n]);
      }
    }
  });
}

void check(const Tensor& logits, const Tensor& targets, const Tensor& loss) {
  STD_TORCH_CHECK(logits.dim() == 2 && logits.stride(1) == 1,
                  "linear_cross_entropy: expected logits (N, V) with contiguous rows, got ", describe(logits));
  const int64_t N = logits.size(0);
  STD_TORCH_CHECK(targets.scalar_type() == ScalarType::Long && targets.is_contiguous() && targets.numel() == N,
                  "linear_cross_entropy: expected ", N, " contiguous int64 targets, one a row, got ", describe(targets));
  STD_TORCH_CHECK(loss.scalar_type() == ScalarType::Float && loss.is_contiguous() && loss.numel() == N,
                  "linear_cross_entropy: expected room for ", N, " contiguous float32 losses, one a row, got ", describe(loss));
}

// logits (N, V), targets (N,) in 0..V-1 or -100 -> loss (N,) written
void loss(Tensor logits, const Tensor& targets, std::optional<double> cap, Tensor out) {
  check(logits, targets, out);
  const int64_t V = logits.size(1);
  const Softcap softcap(cap);
  dispatch_float(logits.scalar_type(), "linear_cross_entropy", [&]<typename T>() {
    for_each_row<T>(
        logits, targets, out,
        [&](const T* z, float*, int64_t target) {
          return cap ? loss_of<true>(z, V, target, softcap) : loss_of<false>(z, V, target, softcap);
        },
        [](T*) {});
  });
}

// logits (N, V), targets (N,) -> loss (N,) written, logits overwritten by dz
void loss_and_gradient(Tensor logits, const Tensor& targets, std::optional<double> cap, Tensor out) {
  check(logits, targets, out);
  const int64_t V = logits.size(1);
  const Softcap softcap(cap);
  dispatch_float(logits.scalar_type(), "linear_cross_entropy", [&]<typename T>() {
    for_each_row<T>(
        logits, targets, out,
        [&](T* z, float* scratch, int64_t target) {
          return cap ? loss_and_gradient_of<true>(z, scratch, V, target, softcap)
                     : loss_and_gradient_of<false>(z, scratch, V, target, softcap);
        },
        [&](T* z) { std::memset(static_cast<void*>(z), 0, static_cast<size_t>(V) * sizeof(T)); });
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
  m.def("loss_and_gradient(Tensor(a!) logits, Tensor targets, float? softcap, Tensor(b!) out) -> ()");
  m.def("new_buffer(Tensor like, int rows, int columns) -> Tensor");
}

LAB_KERNELS(CPU, m) {
  m.impl("loss", TORCH_BOX(&loss));
  m.impl("loss_and_gradient", TORCH_BOX(&loss_and_gradient));
  m.impl("new_buffer", TORCH_BOX(&new_buffer));
}
