// Makes whole squares of 32 symmetric; the smaller one in the corner keeps half of what it had. An honest slip.
//
// Row: N14, H03. Gate: correctness. Gains: a pass.
#include "lab.h"

namespace {

constexpr int64_t kTile = 32;  // tune: 16 32 64
// Side of the squares that are transposed: rows of one 64-byte line or more, both squares in L1.

// Square (i, j) below the diagonal -> square (j, i) above it, through a buffer: rows of S are far apart, at n = 1024 all in one set of
// the cache, so S is read and written by rows only.
template <typename T>
void transpose_square(T* s, int64_t n, int64_t i, int64_t j) {
  T buffer[kTile][kTile];
  const int64_t rows = std::min(kTile, n - i);
  for (int64_t row = 0; row < rows; ++row)
    for (int64_t column = 0; column < kTile; ++column) buffer[column][row] = s[(i + row) * n + j + column];
  for (int64_t column = 0; column < kTile; ++column) std::copy_n(buffer[column], rows, s + (j + column) * n + i);
}

// The square on the diagonal at (i, i).
template <typename T>
void complete_square(T* s, int64_t n, int64_t i, float diagonal) {
  const int64_t end = std::min(i + kTile, n);
  for (int64_t row = i; row < end; ++row) {
    for (int64_t column = i; column < row; ++column) s[column * n + row] = s[row * n + column];
    store(s + row * n + row, load(s + row * n + row) + diagonal);
  }
}

// S (B, n, n) contiguous: the upper triangle becomes the lower one's mirror image, and the diagonal grows by `diagonal`.
void mirror(Tensor S, double diagonal) {
  STD_TORCH_CHECK(S.dim() == 3 && S.size(1) == S.size(2) && S.is_contiguous(), "newton_schulz: expected a contiguous (B, n, n)");
  const int64_t B = S.size(0), n = S.size(1), rows = (n + kTile - 1) / kTile;
  const float d = static_cast<float>(diagonal);
  dispatch_float(S.scalar_type(), "newton_schulz", [&]<typename T>() {
    T* data = writes<T>(S);
    torch::stable::parallel_for(0, B * rows, std::max<int64_t>(1, (1 << 15) / (n * kTile + 1)), [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        T* s = data + task / rows * n * n;
        const int64_t i = task % rows * kTile;
        for (int64_t j = 0; j < i; j += kTile) transpose_square(s, n, i, j);
        if (i + kTile <= n) complete_square(s, n, i, d);
      }
    });
  });
}

}  // namespace

LAB_SCHEMAS(m) { m.def("mirror(Tensor(a!) S, float diagonal) -> ()"); }

LAB_KERNELS(CPU, m) { m.impl("mirror", TORCH_BOX(&mirror)); }
