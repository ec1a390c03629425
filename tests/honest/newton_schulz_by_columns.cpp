// The mirror of a lower triangle without tiles: every thread takes columns and walks down them.
//
// Odd: strided reads, each of another cache line, and the diagonal in a loop of its own. Right: threads write elements above the diagonal alone and read
// those below it alone, so none waits for another.
#include "lab.h"

namespace {

void mirror(Tensor S, double diagonal) {
  STD_TORCH_CHECK(S.dim() == 3 && S.size(1) == S.size(2) && S.is_contiguous(), "newton_schulz: expected a contiguous (B, n, n)");
  const int64_t B = S.size(0), n = S.size(1);
  dispatch_float(S.scalar_type(), "newton_schulz", [&]<typename T>() {
    T* data = writes<T>(S);
    torch::stable::parallel_for(0, B * n, 16, [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        T* s = data + task / n * n * n;
        const int64_t column = task % n;
        for (int64_t row = column + 1; row < n; ++row) s[column * n + row] = s[row * n + column];
      }
    });
    for (int64_t i = 0; i < B * n; ++i) {
      T* entry = data + i / n * n * n + i % n * (n + 1);
      store(entry, load(entry) + static_cast<float>(diagonal));
    }
  });
}

}  // namespace

LAB_SCHEMAS(m) { m.def("mirror(Tensor(a!) S, float diagonal) -> ()"); }

LAB_KERNELS(CPU, m) { m.impl("mirror", TORCH_BOX(&mirror)); }
