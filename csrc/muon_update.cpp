// Muon's step from an orthogonalised update on the CPU: NorMuon's sizes, cautious weight decay, and the weights.
//
// Bound: memory. The update u is read twice: for each neuron's sum of squares and, with the weights, for the step. A bank of a small model
// stays in the second-level cache in between. In float32 an element costs 8 bytes in and 4 out, and 4 more in where the bank does not.
#include "lab.h"

namespace {

// Elements that a thread takes at least: 20 us of work, where waking the pool takes 5.
constexpr int64_t kGrain = 1 << 15;  // tune: 8192 32768 131072
// Pieces in which a matrix's columns are summed. Each has sums of its own, so that they depend on the shape and not on the threads.
constexpr int64_t kParts = 8;  // tune: 4 8 16
constexpr float kEps = 1e-10f;

struct Bank {
  int64_t batch, M, N;
  bool rows;  // a neuron is a row
  int64_t neurons() const { return rows ? M : N; }
  int64_t length() const { return rows ? N : M; }
};

float floored(float x) { return x < kEps ? kEps : x; }  // a NaN stays one

template <typename T>
float sum_of_squares(const T* u, int64_t n) {
  float sum = 0.f;
#pragma omp simd reduction(+ : sum)
  for (int64_t i = 0; i < n; ++i) sum += load(u + i) * load(u + i);
  return sum;
}

// square (batch, M): the sum of squares of each row.
template <typename T>
void squares_of_rows(const T* u, float* square, const Bank& bank) {
  const int64_t N = bank.N;
  torch::stable::parallel_for(0, bank.batch * bank.M, std::max<int64_t>(1, kGrain / N), [=](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) square[row] = sum_of_squares(u + row * N, N);
  });
}

// square (batch, N): the sum of squares of each column.
template <typename T>
void squares_of_columns(const T* u, float* square, const Bank& bank) {
  const auto [batch, M, N, _] = bank;
  const int64_t parts = std::clamp<int64_t>(M * N / kGrain, 1, std::min(kParts, M));
  std::vector<float> sums(static_cast<size_t>(batch * parts * N), 0.f);
  float* const all = sums.data();
  torch::stable::parallel_for(0, batch * parts, 1, [=, M = M, N = N](int64_t begin, int64_t end) {
    for (int64_t task = begin; task < end; ++task) {
      const int64_t part = task % parts;
      float* sum = all + task * N;
      for (int64_t row = M * part / parts; row < M * (part + 1) / parts; ++row) {
        const T* r = u + (task / parts * M + row) * N;
#pragma omp simd
        for (int64_t i = 0; i < N; ++i) sum[i] += load(r + i) * load(r + i);
      }
    }
  });
  for (int64_t b = 0; b < batch; ++b)
    for (int64_t part = 0; part < parts; ++part)
      for (int64_t i = 0; i < N; ++i) square[b * N + i] += sums[(b * parts + part) * N + i];
}

// Turns the sums of squares of one matrix, in place, into what each neuron of u is multiplied by, and brings its sizes up to date.
void factors(float* square, float* size, const Bank& bank, float lr, float rise) {
  const int64_t n = bank.neurons();
  double before = 0, after = 0;
  for (int64_t i = 0; i < n; ++i) {
    const float mean = square[i] / static_cast<float>(bank.length());
    size[i] += rise * (mean - size[i]);
    before += mean;
    after += mean / floored(size[i]);
  }
  const float whole = lr * std::sqrt(static_cast<float>(before) / floored(static_cast<float>(after)));
  for (int64_t i = 0; i < n; ++i) square[i] = whole / std::sqrt(floored(size[i]));
}

// One row: element i of u is multiplied by factor(i).
template <typename T, typename Factor>
void step_row(float* w, const T* u, int64_t N, float decay, Factor&& factor) {
#pragma omp simd
  for (int64_t i = 0; i < N; ++i) {
    const float step = factor(i) * load(u + i);
    const float shrink = step * w[i] >= 0.f ? decay : 0.f;
    w[i] = w[i] - shrink * w[i] - step;
  }
}

template <typename T>
void step(float* w, const T* u, const float* factor, const Bank& bank, float decay) {
  const auto [batch, M, N, rows] = bank;
  const int64_t grain = std::max<int64_t>(1, kGrain / N);
  torch::stable::parallel_for(0, batch * M, grain, [=, M = M, N = N, rows = rows](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const float* f = rows ? factor + row : factor + row / M * N;
      if (rows) step_row(w + row * N, u + row * N, N, decay, [c = *f](int64_t) { return c; });
      else step_row(w + row * N, u + row * N, N, decay, [f](int64_t i) { return f[i]; });
    }
  });
}

// weight, u (..., M, N) contiguous; size (..., M, 1) or (..., 1, N) contiguous
void update(Tensor weight, Tensor size, const Tensor& u, double lr, double decay, double beta) {
  const int64_t d = weight.dim();
  STD_TORCH_CHECK(d >= 2 && weight.is_contiguous() && u.is_contiguous() && size.is_contiguous() && size.dim() == d &&
                      weight.numel() == u.numel() && weight.scalar_type() == ScalarType::Float &&
                      size.scalar_type() == ScalarType::Float,
                  "muon_update: expected contiguous matrices (..., M, N), weight and size in float32, got weight ", describe(weight),
                  ", size ", describe(size), " and update ", describe(u));
  if (weight.numel() == 0) return;
  const int64_t M = weight.size(d - 2), N = weight.size(d - 1);
  const Bank bank{weight.numel() / (M * N), M, N, size.size(d - 1) == 1 && size.size(d - 2) == M};
  const int64_t n = bank.neurons();
  STD_TORCH_CHECK(size.numel() == bank.batch * n, "muon_update: expected a size of ", bank.batch * n, " numbers, got ", describe(size));
  std::vector<float> square(static_cast<size_t>(bank.batch * n), 0.f);
  float* const sizes = writes<float>(size);
  dispatch_float(u.scalar_type(), "muon_update", [&]<typename T>() {
    if (bank.rows) squares_of_rows(reads<T>(u), square.data(), bank);
    else squares_of_columns(reads<T>(u), square.data(), bank);
    for (int64_t b = 0; b < bank.batch; ++b)
      factors(square.data() + b * n, sizes + b * n, bank, static_cast<float>(lr), static_cast<float>(1 - beta));
    step(writes<float>(weight), reads<T>(u), square.data(), bank, static_cast<float>(decay));
  });
}

}  // namespace

LAB_SCHEMAS(m) {
  m.def("update(Tensor(a!) weight, Tensor(b!) size, Tensor update, float lr, float decay, float beta) -> ()");
}

LAB_KERNELS(CPU, m) { m.impl("update", TORCH_BOX(&update)); }
