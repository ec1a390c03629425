// RMSNorm on the CPU: y = x * rstd * weight, rstd = 1 / sqrt(mean(x^2) + eps), one row of D at a time.
//
// Bound: memory. Forward reads x and writes y; backward reads dy and x and writes dx. A row (a few KB) is summed and then
// scaled while it sits in L1, so DRAM sees each tensor once; torch's eager composition passes over it five times forward and
// about ten times backward.
#include "lab.h"

namespace {

constexpr int64_t kGrain = 1 << 14;  // tune: 4096 16384 65536
// Elements a thread takes at least: below it waking the pool (about 5 us) costs more than the rows.

template <typename T>
void forward_rows(const T* x, const T* weight, T* y, float* rstd, int64_t begin, int64_t end, int64_t D, float eps) {
  for (int64_t row = begin; row < end; ++row) {
    const T* xr = x + row * D;
    T* yr = y + row * D;
    float sum = 0.f;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < D; ++i) {
      const float v = load(xr + i);
      sum += v * v;
    }
    const float r = 1.f / std::sqrt(sum / static_cast<float>(D) + eps);
    rstd[row] = r;
    if (weight != nullptr) {
#pragma omp simd
      for (int64_t i = 0; i < D; ++i)
        store(yr + i, load(xr + i) * r * load(weight + i));
    } else {
#pragma omp simd
      for (int64_t i = 0; i < D; ++i) store(yr + i, load(xr + i) * r);
    }
  }
}

// With g = dy * weight and n = x * rstd:  dx = rstd * (g - n * mean(g * n)),  dweight += dy * n.
template <typename T>
void backward_rows(const T* dy, const T* x, const T* weight, const float* rstd, T* dx, float* dweight, int64_t begin,
                   int64_t end, int64_t D) {
  for (int64_t row = begin; row < end; ++row) {
    const T* xr = x + row * D;
    const T* dyr = dy + row * D;
    T* dxr = dx + row * D;
    const float r = rstd[row];
    float dot = 0.f;
    if (weight != nullptr) {
#pragma omp simd reduction(+ : dot)
      for (int64_t i = 0; i < D; ++i)
        dot += load(dyr + i) * load(weight + i) * load(xr + i);
    } else {
#pragma omp simd reduction(+ : dot)
      for (int64_t i = 0; i < D; ++i) dot += load(dyr + i) * load(xr + i);
    }
    const float c = dot * r * r / static_cast<float>(D);
    if (weight != nullptr) {
#pragma omp simd
      for (int64_t i = 0; i < D; ++i) {
        const float v = load(xr + i), g = load(dyr + i);
        dweight[i] += g * v * r;
        store(dxr + i, r * (g * load(weight + i) - v * c));
      }
    } else {
#pragma omp simd
      for (int64_t i = 0; i < D; ++i)
        store(dxr + i, r * (load(dyr + i) - load(xr + i) * c));
    }
  }
}

// x (R, D) contiguous, weight (D,) of the same dtype or none -> y (R, D), rstd (R,) float32
std::tuple<Tensor, Tensor> forward(const Tensor& x, const std::optional<Tensor>& weight, double eps) {
  const int64_t R = x.size(0), D = x.size(1);
  Tensor y = torch::stable::empty_like(x);
  Tensor rstd = torch::stable::new_empty(x, {R}, ScalarType::Float);
  dispatch_float(x.scalar_type(), "rms_norm", [&]<typename T>() {
    const T* w = weight ? static_cast<const T*>(weight->const_data_ptr()) : nullptr;
    torch::stable::parallel_for(0, R, std::max<int64_t>(1, kGrain / D), [&](int64_t begin, int64_t end) {
      forward_rows<T>(static_cast<const T*>(x.const_data_ptr()), w, static_cast<T*>(y.mutable_data_ptr()),
                      static_cast<float*>(rstd.mutable_data_ptr()), begin, end, D, static_cast<float>(eps));
    });
  });
  return {y, rstd};
}

// dy, x (R, D) contiguous -> dx (R, D), dweight (D,) float32 (zeros without a weight)
std::tuple<Tensor, Tensor> backward(const Tensor& dy, const Tensor& x, const std::optional<Tensor>& weight,
                                    const Tensor& rstd) {
  const int64_t R = x.size(0), D = x.size(1);
  Tensor dx = torch::stable::empty_like(x);
  Tensor dweight = torch::stable::new_zeros(x, {D}, ScalarType::Float);
  const int64_t parts = weight ? std::min<int64_t>(R, torch::stable::get_num_threads()) : 1;
  std::vector<float> partial(static_cast<size_t>(parts * D), 0.f);  // one dweight a part: no atomics, same sum every run
  dispatch_float(x.scalar_type(), "rms_norm backward", [&]<typename T>() {
    const T* w = weight ? static_cast<const T*>(weight->const_data_ptr()) : nullptr;
    const auto rows = [&](int64_t begin, int64_t end, float* dw) {
      backward_rows<T>(static_cast<const T*>(dy.const_data_ptr()), static_cast<const T*>(x.const_data_ptr()), w,
                       static_cast<const float*>(rstd.const_data_ptr()), static_cast<T*>(dx.mutable_data_ptr()), dw, begin,
                       end, D);
    };
    if (weight) {
      torch::stable::parallel_for(0, parts, 1, [&](int64_t first, int64_t last) {
        for (int64_t p = first; p < last; ++p) rows(R * p / parts, R * (p + 1) / parts, partial.data() + p * D);
      });
    } else {
      torch::stable::parallel_for(0, R, std::max<int64_t>(1, kGrain / D),
                                  [&](int64_t begin, int64_t end) { rows(begin, end, nullptr); });
    }
  });
  float* dw = static_cast<float*>(dweight.mutable_data_ptr());
  if (weight)
    for (int64_t p = 0; p < parts; ++p)
      for (int64_t i = 0; i < D; ++i) dw[i] += partial[p * D + i];
  return {dx, dweight};
}

}  // namespace

LAB_SCHEMAS(m) {
  m.def("forward(Tensor x, Tensor? weight, float eps) -> (Tensor y, Tensor rstd)");
  m.def("backward(Tensor dy, Tensor x, Tensor? weight, Tensor rstd) -> (Tensor dx, Tensor dweight)");
}

LAB_KERNELS(CPU, m) {
  m.impl("forward", TORCH_BOX(&forward));
  m.impl("backward", TORCH_BOX(&backward));
}
