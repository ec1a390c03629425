// Muon's momentum with Nesterov's look ahead on the CPU: both tensors updated in a single pass.
//
// Bound: memory. In float32 an element costs 8 bytes in and 8 out.
#include "lab.h"

namespace {

// Elements that a thread takes at least: 20 us of work, where waking the pool takes 5.
constexpr int64_t kGrain = 1 << 15;  // tune: 8192 32768 131072

// m and g do not overlap.
template <typename Gradient>
void update_range(float* m, Gradient* g, int64_t begin, int64_t end, float rise, float beta) {
#pragma omp simd
  for (int64_t i = begin; i < end; ++i) {
    const float gi = load(g + i), mi = m[i] + rise * (gi - m[i]);
    m[i] = mi;
    store(g + i, gi + beta * (mi - gi));
  }
}

void update(Tensor m, Tensor g, double beta) {
  STD_TORCH_CHECK(m.is_contiguous() && g.is_contiguous() && m.numel() == g.numel() && m.scalar_type() == ScalarType::Float,
                  "nesterov: expected a contiguous float32 momentum and a contiguous grad of as many elements, got ", describe(m),
                  " and ", describe(g));
  const float rise = static_cast<float>(1 - beta), b = static_cast<float>(beta);
  dispatch_float(g.scalar_type(), "nesterov", [&]<typename Gradient>() {
    float* const pm = writes<float>(m);
    Gradient* const pg = writes<Gradient>(g);
    torch::stable::parallel_for(0, m.numel(), kGrain, [=](int64_t begin, int64_t end) {
      update_range(pm, pg, begin, end, rise, b);
    });
  });
}

}  // namespace

LAB_SCHEMAS(m) { m.def("update(Tensor(a!) momentum, Tensor(b!) grad, float beta) -> ()"); }

LAB_KERNELS(CPU, m) { m.impl("update", TORCH_BOX(&update)); }
