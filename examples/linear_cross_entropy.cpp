// Cross-entropy of rows of logits on the CPU, written plainly: for each row its largest logit, then the sum of the exponentials, then the
// gradient over the logits. Drop-in for csrc/linear_cross_entropy.cpp, with the same schemas and the same Python side.
//
//   y = c tanh(z / c)   (or z)      loss = log(sum exp y) - y[target]
//   dz = (softmax(y) - onehot(target)) * (1 - tanh^2(z / c))
#include "lab.h"

namespace {

// Rows a thread takes at a time.
constexpr int64_t kRows = 8;  // tune: 1 8 64
// Independent maxima and sums in a row: a single one would wait for itself at every logit.
constexpr int kAccumulators = 4;  // tune: 1 4 8 16 32
// Whether the second loop leaves its exponentials in a row of floats for the third, or the third makes them again.
constexpr bool kKeep = false;  // tune: false true

constexpr int64_t kIgnored = -100;

float capped(float z, float cap) { return cap > 0.f ? cap * fast_tanh(z / cap) : z; }

float slope(float y, float cap) { return cap > 0.f ? 1.f - (y / cap) * (y / cap) : 1.f; }

template <typename T>
float largest(const T* z, int64_t V) {
  float top[kAccumulators];
  for (float& t : top) t = -std::numeric_limits<float>::infinity();
  int64_t i = 0;
  for (; i + kAccumulators <= V; i += kAccumulators)
    for (int k = 0; k < kAccumulators; ++k) top[k] = std::max(top[k], load(z + i + k));
  for (; i < V; ++i) top[0] = std::max(top[0], load(z + i));
  return *std::max_element(top, top + kAccumulators);
}

// Sum of exp(y - top); with kKeep each term is also left in `terms`.
template <typename T>
float sum_of_exponentials(const T* z, int64_t V, float cap, float top, float* terms) {
  float sum[kAccumulators] = {};
  int64_t i = 0;
  for (; i + kAccumulators <= V; i += kAccumulators)
    for (int k = 0; k < kAccumulators; ++k) {
      const float e = fast_exp(capped(load(z + i + k), cap) - top);
      sum[k] += e;
      if (kKeep) terms[i + k] = e;
    }
  for (; i < V; ++i) {
    const float e = fast_exp(capped(load(z + i), cap) - top);
    sum[0] += e;
    if (kKeep) terms[i] = e;
  }
  float total = 0.f;
  for (float s : sum) total += s;
  return total;
}

template <typename T>
float row_loss(T* z, int64_t V, int64_t target, float cap, bool gradient, float* terms) {
  const float top = capped(largest(z, V), cap);
  const float y_target = capped(load(z + target), cap);
  const float sum = sum_of_exponentials(z, V, cap, top, terms);
  if (gradient) {
    for (int64_t i = 0; i < V; ++i) {
      const float y = capped(load(z + i), cap);
      const float e = kKeep ? terms[i] : fast_exp(y - top);
      store(z + i, e / sum * slope(y, cap));
    }
    store(z + target, (fast_exp(y_target - top) / sum - 1.f) * slope(y_target, cap));
  }
  return (top - y_target) + std::log(sum);
}

void rows(Tensor logits, const Tensor& targets, std::optional<double> softcap, Tensor out, bool gradient) {
  const int64_t N = logits.size(0), V = logits.size(1), stride = logits.stride(0);
  STD_TORCH_CHECK(logits.stride(1) == 1, "linear_cross_entropy: expected logits (N, V) with contiguous rows");
  const float cap = static_cast<float>(softcap.value_or(0.));
  dispatch_float(logits.scalar_type(), "linear_cross_entropy", [&]<typename T>() {
    torch::stable::parallel_for(0, N, kRows, [&](int64_t begin, int64_t end) {
      std::vector<float> terms(static_cast<size_t>(V));
      for (int64_t n = begin; n < end; ++n) {
        T* z = writes<T>(logits) + n * stride;
        const int64_t target = reads<int64_t>(targets)[n];
        float loss = 0.f;
        if (target != kIgnored) loss = row_loss(z, V, target, cap, gradient, terms.data());
        else if (gradient) std::memset(static_cast<void*>(z), 0, static_cast<size_t>(V) * sizeof(T));
        writes<float>(out)[n] = loss;
      }
    });
  });
}

// logits (N, V), targets (N,) -> loss (N,) written
void loss(Tensor logits, const Tensor& targets, std::optional<double> softcap, Tensor out) {
  rows(logits, targets, softcap, out, false);
}

// logits (N, V), targets (N,) -> loss (N,) written, logits overwritten by dz; `scale` (N,) is 1, and 0 where the target is ignored
void loss_and_gradient(Tensor logits, const Tensor& targets, std::optional<double> softcap, Tensor out, Tensor scale) {
  rows(logits, targets, softcap, out, true);
  for (int64_t n = 0; n < scale.numel(); ++n) writes<float>(scale)[n] = reads<int64_t>(targets)[n] == kIgnored ? 0.f : 1.f;
}

// Uninitialised (rows, columns) of like's dtype.
Tensor new_buffer(const Tensor& like, int64_t rows, int64_t columns) { return torch::stable::new_empty(like, {rows, columns}); }

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
