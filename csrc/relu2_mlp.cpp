// The two passes of a ReLU^2 MLP on the CPU that are not matrix products, each in place over what a product has just made:
//
//   forward    s = relu(h)^2               over h
//   backward   dh = ds * 2 sqrt(s)         over ds        since relu(h)^2 has the derivative 2 relu(h), and relu(h) is the root of s
//
// So only one hidden tensor is kept: s, which the weight gradient needs anyway. The products are torch's (kernels/relu2_mlp.py).
//
// Bound: memory, one read and one write of a hidden tensor forward, two reads and one write backward; torch's eager composition makes four
// and some ten, each time into fresh memory.
#include "lanes.h"

namespace {

// Elements that a thread takes at least: below that, waking the pool (about 5 us) costs more than the pass.
constexpr int64_t kGrain = 1 << 15;  // tune: 8192 32768 131072

// ReLU that lets a NaN through, and its square.
inline floats relu2(floats v) {
  const floats r = larger(floats{}, v);
  return r * r;
}

// 2 relu(h), from its square.
inline floats slope(floats s) {
  float lane[kLanes];
  std::memcpy(lane, &s, sizeof lane);
#pragma omp simd
  for (int i = 0; i < kLanes; ++i) lane[i] = 2.f * std::sqrt(lane[i]);
  std::memcpy(&s, lane, sizeof lane);
  return s;
}

// Cuts n elements into ranges of whole blocks, of which the last may end earlier, and calls range(begin, length) for each, on all threads.
template <typename Range>
void for_each_range(int64_t n, const Range& range) {
  torch::stable::parallel_for(0, ceil_div(n, kBlock), kGrain / kBlock, [&](int64_t begin, int64_t end) {
    range(begin * kBlock, std::min(end * kBlock, n) - begin * kBlock);
  });
}

// Calls f.template operator()<T>() for the types that products are made in.
template <typename F>
void dispatch(const Tensor& x, F&& f) {
  STD_TORCH_CHECK(x.is_contiguous(), "relu2_mlp: expected a contiguous tensor, got ", describe(x));
  if (x.scalar_type() == ScalarType::Float) return f.template operator()<float>();
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::BFloat16, "relu2_mlp: expected float32 or bfloat16, got ", x.scalar_type());
  f.template operator()<bf16>();
}

// h becomes relu(h)^2
void forward(Tensor h) {
  dispatch(h, [&]<typename T>() {
    T* const elements = writes<T>(h);
    for_each_range(h.numel(), [&](int64_t begin, int64_t length) {
      T* const p = elements + begin;
      for_each_block(length, [&](int64_t, auto read, auto write) {
        const Pair v = read(p);
        write(p, Pair{relu2(v.even), relu2(v.odd)});
      });
    });
  });
}

// ds becomes ds * 2 sqrt(s)
void backward(Tensor ds, const Tensor& s) {
  STD_TORCH_CHECK(s.is_contiguous() && s.numel() == ds.numel() && s.scalar_type() == ds.scalar_type(),
                  "relu2_mlp: expected s as ds is, contiguous ", describe(ds), ", got ", describe(s));
  dispatch(ds, [&]<typename T>() {
    T* const elements = writes<T>(ds);
    const T* const squares = reads<T>(s);
    for_each_range(ds.numel(), [&](int64_t begin, int64_t length) {
      T* const p = elements + begin;
      const T* const from = squares + begin;
      for_each_block(length, [&](int64_t, auto read, auto write) {
        const Pair v = read(from);
        write(p, read(p) * Pair{slope(v.even), slope(v.odd)});
      });
    });
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
