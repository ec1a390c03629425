// The two passes of a ReLU^2 MLP on the CPU that are not matrix products, each in place over what a product has just made:
//
//   forward    s = relu(h)^2               over h
//   backward   dh = ds * 2 sqrt(s)         over ds        since d relu(h)^2 = 2 relu(h) dh, and relu(h) is the root of s
//
// So of the hidden tensors one is kept, s, which the weight gradient wants in any case. The products are torch's (kernels/relu2_mlp.py).
//
// Bound: memory, one read and one write of a hidden tensor forward, two reads and one write backward; torch's eager composition makes five
// and six, each time into fresh memory.
#include "lanes.h"

namespace {

constexpr int64_t kGrain = 1 << 15;  // tune: 8192 32768 131072
// Elements a thread takes at least: below it waking the pool (about 5 us) costs more than the pass.

// ReLU that lets a NaN through, and its square.
inline float relu2(float v) {
  const float r = v < 0.f ? 0.f : v;
  return r * r;
}
inline floats relu2(floats v) {
  const floats r = v < 0.f ? floats{} : v;
  return r * r;
}

inline float slope(float s) { return 2.f * std::sqrt(s); }
inline floats slope(floats s) {
  float lane[kLanes];
  std::memcpy(lane, &s, sizeof lane);
#pragma omp simd
  for (int i = 0; i < kLanes; ++i) lane[i] = 2.f * std::sqrt(lane[i]);
  std::memcpy(&s, lane, sizeof lane);
  return s;
}

// Calls block(i) for each whole block of elements [i, i + kBlock) and single(i) for each of the rest, on all threads.
template <typename Block, typename Single>
void for_each_element(int64_t n, Block&& block, Single&& single) {
  torch::stable::parallel_for(0, (n + kBlock - 1) / kBlock, kGrain / kBlock, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * kBlock; i < std::min(end * kBlock, n); i += kBlock) {
      if (i + kBlock <= n) block(i);
      else
        for (int64_t j = i; j < n; ++j) single(j);
    }
  });
}

// Calls f.template operator()<T>() for the types that products are made in.
template <typename F>
void dispatch(const Tensor& x, F&& f) {
  STD_TORCH_CHECK(x.is_contiguous(), "relu2_mlp: expected a contiguous tensor");
  if (x.scalar_type() == ScalarType::Float) return f.template operator()<float>();
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::BFloat16, "relu2_mlp: expected float32 or bfloat16, got scalar type ",
                  static_cast<int>(x.scalar_type()));
  f.template operator()<bf16>();
}

// h becomes relu(h)^2
void forward(Tensor h) {
  dispatch(h, [&]<typename T>() {
    T* p = writes<T>(h);
    for_each_element(
        h.numel(),
        [&](int64_t i) {
          const Pair v = load_pair(p + i);
          store_pair(p + i, {relu2(v.even), relu2(v.odd)});
        },
        [&](int64_t i) { store(p + i, relu2(load(p + i))); });
  });
}

// ds becomes ds * 2 sqrt(s)
void backward(Tensor ds, const Tensor& s) {
  STD_TORCH_CHECK(s.is_contiguous() && s.numel() == ds.numel() && s.scalar_type() == ds.scalar_type(),
                  "relu2_mlp: expected s as ds is, contiguous and of ", ds.numel(), " elements");
  dispatch(ds, [&]<typename T>() {
    T* p = writes<T>(ds);
    const T* from = reads<T>(s);
    for_each_element(
        ds.numel(),
        [&](int64_t i) {
          const Pair d = load_pair(p + i), v = load_pair(from + i);
          store_pair(p + i, d * Pair{slope(v.even), slope(v.odd)});
        },
        [&](int64_t i) { store(p + i, load(p + i) * slope(load(from + i))); });
  });
}

}  // namespace

LAB_SCHEMAS(m) {
  m.def("forward(Tensor(a!) h) -> ()");
  m.def("backward(Tensor(a!) ds, Tensor s) -> ()");
}

LAB_KERNELS(CPU, m) {
  m.impl("forward", TORCH_BOX(&forward));
  m.impl("backward", TORCH_BOX(&backward));
}
