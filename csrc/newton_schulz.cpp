// Newton-Schulz on the CPU: matrices of norm one, products of them (product.h), and a symmetric matrix made whole from its lower triangle.
//
// Of a product known to be symmetric, only the tiles that reach below the diagonal are summed (60 % of them at n = 192); the rest is mirrored.
// Products that kernels/newton_schulz.py leaves to torch go by panels of rows, each only as far as the diagonal.
//
// Bound: arithmetic, 2 M N K flops a product, half of that where it is symmetric; the mirror image is one read of the lower triangle
// and one write of the upper, the norm two reads of each matrix and one write.
#include "product.h"

namespace {

// Side of the squares that are transposed: rows of one 64-byte line or more, both squares in L1.
constexpr int64_t kTile = 32;  // tune: 16 32 64
// Elements that a thread takes at least, counting a row of squares as n * kTile: below that, waking the pool (about 5 us) costs more than the squares.
constexpr int64_t kGrain = 1 << 15;
// Elements of a matrix whose squares a thread sums at a time.
constexpr int64_t kPart = 1 << 14;  // tune: 8192 16384 32768

// Square (i, j) below the diagonal -> square (j, i) above it. Whole squares pass through registers; those of fp16, and those that the end of S cuts
// off, pass through a buffer: rows of S are far apart, at n = 1024 all in one set of the cache, so that S is read and written by rows only.
template <typename T>
void transpose_square(T* s, int64_t n, int64_t i, int64_t j) {
  const int64_t rows = std::min(kTile, n - i);
  constexpr int64_t kSquare = std::is_same_v<T, bf16> ? kBlock : kLanes;
  if constexpr (!std::is_same_v<T, fp16> && kTile % kSquare == 0) {
    if (rows == kTile) {
      for (int64_t row = i; row < i + kTile; row += kSquare)
        for (int64_t column = j; column < j + kTile; column += kSquare) transpose(s + row * n + column, n, s + column * n + row, n);
      return;
    }
  }
  T buffer[kTile][kTile];
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
  STD_TORCH_CHECK(S.dim() == 3 && S.size(1) == S.size(2) && S.is_contiguous(), "newton_schulz: expected a contiguous S (B, n, n), got ", describe(S));
  const int64_t B = S.size(0), n = S.size(1), rows = ceil_div(n, kTile);
  const float d = static_cast<float>(diagonal);
  dispatch_float(S.scalar_type(), "newton_schulz", [&]<typename T>() {
    T* data = writes<T>(S);
    torch::stable::parallel_for(0, B * rows, std::max<int64_t>(1, kGrain / (n * kTile + 1)), [&](int64_t begin, int64_t end) {
      for (int64_t task = begin; task < end; ++task) {
        T* s = data + task / rows * n * n;
        const int64_t i = task % rows * kTile;
        for (int64_t j = 0; j < i; j += kTile) transpose_square(s, n, i, j);
        complete_square(s, n, i, d);
      }
    });
  });
}

// X = G / (safety |G|), by the Frobenius norm of each matrix G (B, M, N). A norm below `tiny` counts as `tiny`, so that zeros stay zeros; a NaN stays one.
void normalise(const Tensor& G, double safety, double tiny, Tensor X) {
  STD_TORCH_CHECK(G.dim() == 3 && G.is_contiguous() && X.is_contiguous() && X.numel() == G.numel() && X.scalar_type() == G.scalar_type(),
                  "newton_schulz: expected a contiguous G (B, M, N) and X as G is, got ", describe(G), " and ", describe(X));
  const int64_t size = G.size(1) * G.size(2), parts = ceil_div(size, kPart), all = G.size(0) * parts;
  std::vector<float> sums(static_cast<size_t>(all));
  dispatch_float(G.scalar_type(), "newton_schulz", [&]<typename T>() {
    const T* const g = reads<T>(G);
    T* const x = writes<T>(X);
    // Calls part(first element, elements, matrix, number) for each part, on all threads.
    const auto for_each_part = [&](const auto& part) {
      torch::stable::parallel_for(0, all, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
          const int64_t matrix = i / parts, offset = i % parts * kPart;
          part(matrix * size + offset, std::min(kPart, size - offset), matrix, i);
        }
      });
    };
    for_each_part([&](int64_t first, int64_t length, int64_t, int64_t i) {
      Pair squares{};
      for_each_block(length, [&](int64_t, auto read, auto) {
        const Pair v = read(g + first);
        squares = squares + v * v;
      });
      sums[i] = sum_of(squares);
    });
    for_each_part([&](int64_t first, int64_t length, int64_t matrix, int64_t) {
      float sum = 0.f;
      for (int64_t i = matrix * parts; i < (matrix + 1) * parts; ++i) sum += sums[i];
      const float norm = std::sqrt(sum) * static_cast<float>(safety), least = static_cast<float>(tiny);
      const float scale = 1.f / (norm < least ? least : norm);
      for_each_block(length, [&](int64_t, auto read, auto write) { write(x + first, read(g + first) * scale); });
    });
  });
}

template <typename T>
View<T> view(const Tensor& t, int64_t matrix) {
  return {reads<T>(t) + matrix * t.stride(0), t.stride(1), t.stride(2)};
}

template <typename T>
void multiply(const Tensor& left, const Tensor& right, const std::optional<Tensor>& add, float b, float c, bool lower, Tensor& out) {
  const int64_t M = out.size(1), N = out.size(2), K = left.size(2);
  const T* added = add ? reads<T>(*add) : nullptr;
  T* data = writes<T>(out);
  multiply_all(
      out.size(0), [&](int64_t matrix) { return Product<T>{view<T>(left, matrix), view<T>(right, matrix), M, N, K, lower}; },
      [=](int64_t matrix, int64_t i, int64_t j, Pair sums, int64_t columns) {
        const int64_t at = (matrix * M + i) * N + j;
        Pair value = sums * c;
        if (columns == kTileColumns) {
          if (added) value = value + load_pair(added + at) * b;
          store_pair(data + at, value);
        } else {
          if (added) value = value + load_pair(added + at, columns) * b;
          store_pair(data + at, value, columns);
        }
      });
}

// out (B, M, N) = b add + c left right, for left (B, M, K), right (B, K, N). lower: of a square out, what lies above the diagonal is left undefined.
// bfloat16 takes a processor that has AVX512-BF16.
void product(const Tensor& left, const Tensor& right, const std::optional<Tensor>& add, double b, double c, bool lower, Tensor out) {
  const ScalarType type = out.scalar_type();
  for (const Tensor* t : {static_cast<const Tensor*>(&out), &left, &right})
    STD_TORCH_CHECK(t->dim() == 3 && t->size(0) == out.size(0) && t->scalar_type() == type,
                    "newton_schulz: expected left, right and out of three dimensions, one batch and one type, got ", describe(left), ", ",
                    describe(right), " and ", describe(out));
  const int64_t M = out.size(1), N = out.size(2);
  STD_TORCH_CHECK(left.size(1) == M && right.size(1) == left.size(2) && right.size(2) == N && out.is_contiguous() && (!lower || M == N),
                  "newton_schulz: factors and result do not fit together: expected left (B, M, K), right (B, K, N) and a contiguous out (B, M, N)",
                  lower ? " with M = N" : "", ", got ", describe(left), ", ", describe(right), " and ", describe(out));
  STD_TORCH_CHECK(!add || (add->is_contiguous() && add->numel() == out.numel() && add->scalar_type() == type),
                  "newton_schulz: expected add as out is, a contiguous ", describe(out), ", got ", describe(*add));
  const auto multiply_as = [&]<typename T>() { multiply<T>(left, right, add, static_cast<float>(b), static_cast<float>(c), lower, out); };
  if (type == ScalarType::BFloat16 && multiplies_pairs()) return multiply_as.template operator()<bf16>();
  STD_TORCH_CHECK(type == ScalarType::Float, "newton_schulz: expected float32, or bfloat16 on a processor with AVX512-BF16, got ", type);
  multiply_as.template operator()<float>();
}

}  // namespace

LAB_SCHEMAS(m) {
  m.def("normalise(Tensor G, float safety, float tiny, Tensor(a!) X) -> ()");
  m.def("mirror(Tensor(a!) S, float diagonal) -> ()");
  m.def("product(Tensor left, Tensor right, Tensor? add, float b, float c, bool lower, Tensor(a!) out) -> ()");
}

LAB_KERNELS(CPU, m) {
  m.impl("normalise", TORCH_BOX(&normalise));
  m.impl("mirror", TORCH_BOX(&mirror));
  m.impl("product", TORCH_BOX(&product));
}
