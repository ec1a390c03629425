// AdamW on the CPU: weight and moments updated in a single pass.
//
// Bound: memory. In float32 an element costs 16 bytes in and 12 out; what is written has just been read, so that no line is fetched to
// be overwritten. The root and the division of 16 elements take 30 cycles (AVX-512, Zen 5), their 448 bytes from DRAM about 60.
#include "lab.h"

namespace {

// Elements that a thread takes at least: 20 us of work, where waking the pool takes 5.
constexpr int64_t kGrain = 1 << 14;  // tune: 4096 16384 65536

// What depends on the step alone.
struct Step {
  float keep;   // 1 - lr weight_decay
  float rate;   // lr / (1 - beta1^step)
  float rise1;  // 1 - beta1
  float beta2;
  float rise2;  // 1 - beta2
  float root;   // 1 / sqrt(1 - beta2^step)
  float eps;
};

// w, m, v and g do not overlap.
template <typename State, typename Gradient>
void update_range(float* w, State* m, State* v, const Gradient* g, int64_t begin, int64_t end, const Step s) {
#pragma omp simd
  for (int64_t i = begin; i < end; ++i) {
    const float gi = load(g + i), old = load(m + i);
    const float mi = old + s.rise1 * (gi - old);
    const float vi = s.beta2 * load(v + i) + s.rise2 * gi * gi;
    w[i] = s.keep * w[i] - s.rate * mi / (std::sqrt(vi) * s.root + s.eps);
    store(m + i, mi);
    store(v + i, vi);
  }
}

void check(const char* name, const Tensor& t, const Tensor& like) {
  STD_TORCH_CHECK(t.is_contiguous() && t.numel() == like.numel(), "adamw ", name, ": expected a contiguous tensor of ",
                  like.numel(), " elements, got ", describe(t));
}

void update(Tensor w, Tensor m, Tensor v, const Tensor& g, double keep, double rate, double beta1, double beta2, double root,
            double eps) {
  check("param", w, w);
  check("exp_avg", m, w);
  check("exp_avg_sq", v, w);
  check("grad", g, w);
  STD_TORCH_CHECK(w.scalar_type() == ScalarType::Float && m.scalar_type() == v.scalar_type(),
                  "adamw: expected a float32 param and both moments in one type, got ", w.scalar_type(), ", ", m.scalar_type(),
                  " and ", v.scalar_type());
  const auto f = [](double x) { return static_cast<float>(x); };
  const Step s{f(keep), f(rate), f(1 - beta1), f(beta2), f(1 - beta2), f(root), f(eps)};
  dispatch_float(m.scalar_type(), "adamw", [&]<typename State>() {
    dispatch_float(g.scalar_type(), "adamw", [&]<typename Gradient>() {
      float* const pw = writes<float>(w);
      State* const pm = writes<State>(m);
      State* const pv = writes<State>(v);
      const Gradient* const pg = reads<Gradient>(g);
      torch::stable::parallel_for(0, w.numel(), kGrain, [=](int64_t begin, int64_t end) {
        update_range(pw, pm, pv, pg, begin, end, s);
      });
    });
  });
}

}  // namespace

LAB_SCHEMAS(m) {
  m.def("update(Tensor(a!) param, Tensor(b!) exp_avg, Tensor(c!) exp_avg_sq, Tensor grad, float keep, float rate, float beta1, "
        "float beta2, float root, float eps) -> ()");
}

LAB_KERNELS(CPU, m) { m.impl("update", TORCH_BOX(&update)); }
