// Exponentials from a table: e^x = 2^n 2^(i / 256) e^r with |r| < ln 2 / 512, where e^r needs two terms of its series.
//
// Odd: 256 numbers written out, which no reader checks one by one. Right: each is 2^(i / 256) rounded to float, and the result is within 3e-7 of e^x,
// relatively.
#include "lab.h"

namespace {

constexpr int64_t kIgnored = -100;
constexpr float kPowers[256] = {
    1.00000000f, 1.00271128f, 1.00542990f, 1.00815590f, 1.01088929f, 1.01363008f, 1.01637831f, 1.01913400f,
    1.02189715f, 1.02466779f, 1.02744595f, 1.03023164f, 1.03302488f, 1.03582569f, 1.03863410f, 1.04145012f,
    1.04427378f, 1.04710510f, 1.04994409f, 1.05279077f, 1.05564518f, 1.05850732f, 1.06137723f, 1.06425491f,
    1.06714040f, 1.07003371f, 1.07293487f, 1.07584389f, 1.07876080f, 1.08168561f, 1.08461836f, 1.08755906f,
    1.09050773f, 1.09346440f, 1.09642908f, 1.09940180f, 1.10238258f, 1.10537145f, 1.10836841f, 1.11137350f,
    1.11438674f, 1.11740815f, 1.12043775f, 1.12347557f, 1.12652162f, 1.12957593f, 1.13263852f, 1.13570941f,
    1.13878863f, 1.14187620f, 1.14497214f, 1.14807648f, 1.15118923f, 1.15431042f, 1.15744007f, 1.16057821f,
    1.16372486f, 1.16688004f, 1.17004377f, 1.17321608f, 1.17639699f, 1.17958653f, 1.18278471f, 1.18599157f,
    1.18920712f, 1.19243138f, 1.19566439f, 1.19890617f, 1.20215673f, 1.20541611f, 1.20868432f, 1.21196140f,
    1.21524736f, 1.21854223f, 1.22184603f, 1.22515879f, 1.22848054f, 1.23181128f, 1.23515106f, 1.23849990f,
    1.24185781f, 1.24522483f, 1.24860098f, 1.25198628f, 1.25538076f, 1.25878444f, 1.26219735f, 1.26561951f,
    1.26905096f, 1.27249170f, 1.27594178f, 1.27940121f, 1.28287002f, 1.28634823f, 1.28983587f, 1.29333297f,
    1.29683955f, 1.30035564f, 1.30388127f, 1.30741645f, 1.31096121f, 1.31451559f, 1.31807960f, 1.32165328f,
    1.32523664f, 1.32882972f, 1.33243255f, 1.33604514f, 1.33966752f, 1.34329973f, 1.34694179f, 1.35059372f,
    1.35425555f, 1.35792731f, 1.36160902f, 1.36530072f, 1.36900242f, 1.37271417f, 1.37643597f, 1.38016787f,
    1.38390988f, 1.38766204f, 1.39142438f, 1.39519691f, 1.39897967f, 1.40277269f, 1.40657599f, 1.41038961f,
    1.41421356f, 1.41804788f, 1.42189260f, 1.42574774f, 1.42961334f, 1.43348941f, 1.43737600f, 1.44127312f,
    1.44518081f, 1.44909909f, 1.45302800f, 1.45696755f, 1.46091779f, 1.46487874f, 1.46885043f, 1.47283289f,
    1.47682615f, 1.48083023f, 1.48484517f, 1.48887099f, 1.49290773f, 1.49695541f, 1.50101407f, 1.50508373f,
    1.50916443f, 1.51325619f, 1.51735904f, 1.52147302f, 1.52559815f, 1.52973447f, 1.53388200f, 1.53804077f,
    1.54221083f, 1.54639218f, 1.55058488f, 1.55478894f, 1.55900440f, 1.56323129f, 1.56746964f, 1.57171948f,
    1.57598085f, 1.58025376f, 1.58453827f, 1.58883438f, 1.59314215f, 1.59746160f, 1.60179276f, 1.60613566f,
    1.61049033f, 1.61485681f, 1.61923514f, 1.62362533f, 1.62802742f, 1.63244145f, 1.63686745f, 1.64130545f,
    1.64575548f, 1.65021757f, 1.65469177f, 1.65917809f, 1.66367658f, 1.66818727f, 1.67271018f, 1.67724536f,
    1.68179283f, 1.68635263f, 1.69092480f, 1.69550936f, 1.70010635f, 1.70471581f, 1.70933776f, 1.71397225f,
    1.71861930f, 1.72327895f, 1.72795123f, 1.73263618f, 1.73733384f, 1.74204423f, 1.74676739f, 1.75150335f,
    1.75625216f, 1.76101384f, 1.76578844f, 1.77057597f, 1.77537649f, 1.78019003f, 1.78501661f, 1.78985628f,
    1.79470908f, 1.79957502f, 1.80445417f, 1.80934654f, 1.81425218f, 1.81917111f, 1.82410339f, 1.82904903f,
    1.83400809f, 1.83898059f, 1.84396657f, 1.84896607f, 1.85397913f, 1.85900577f, 1.86404605f, 1.86909999f,
    1.87416763f, 1.87924902f, 1.88434418f, 1.88945315f, 1.89457598f, 1.89971270f, 1.90486334f, 1.91002795f,
    1.91520656f, 1.92039921f, 1.92560594f, 1.93082679f, 1.93606179f, 1.94131099f, 1.94657442f, 1.95185212f,
    1.95714412f, 1.96245048f, 1.96777122f, 1.97310639f, 1.97845603f, 1.98382016f, 1.98919885f, 1.99459211f,
};

// x <= 0, as it is below a row's largest logit; NaN stays NaN.
float table_exp(float x) {
  if (!(x > -87.f)) return x == x ? 0.f : x;
  const int32_t steps = static_cast<int32_t>(std::lrint(x * 369.3299305f));  // 256 / ln 2
  const float r = (x - static_cast<float>(steps) * 2.70760059e-3f) - static_cast<float>(steps) * 5.81421489e-9f;
  return std::ldexp(kPowers[steps & 255] * (1.f + r + 0.5f * r * r), steps >> 8);
}

// Loss of one row of logits; with `gradient` also dz over the row.
template <typename T>
float row_loss(T* z, int64_t V, int64_t target, std::optional<double> softcap, bool gradient) {
  const float cap = static_cast<float>(softcap.value_or(0.));
  std::vector<float> y(static_cast<size_t>(V));
  float top = -std::numeric_limits<float>::infinity(), sum = 0.f;
  for (size_t i = 0; i < y.size(); ++i) {
    y[i] = softcap ? cap * std::tanh(load(z + i) / cap) : load(z + i);
    top = y[i] <= top ? top : y[i];
  }
  for (float v : y) sum += table_exp(v - top);
  const float lse = top + std::log(sum), wanted = y[static_cast<size_t>(target)];
  for (size_t i = 0; gradient && i < y.size(); ++i) {
    const float slope = softcap ? 1.f - (y[i] / cap) * (y[i] / cap) : 1.f;
    store(z + i, (table_exp(y[i] - top) / sum - (static_cast<int64_t>(i) == target ? 1.f : 0.f)) * slope);
  }
  return lse - wanted;
}

void rows(Tensor& logits, const Tensor& targets, std::optional<double> softcap, Tensor& out, bool gradient) {
  STD_TORCH_CHECK(logits.dim() == 2 && logits.stride(1) == 1, "linear_cross_entropy: expected logits (N, V) with contiguous rows");
  const int64_t N = logits.size(0), V = logits.size(1), stride = logits.stride(0);
  dispatch_float(logits.scalar_type(), "linear_cross_entropy", [&]<typename T>() {
    T* z = writes<T>(logits);
    torch::stable::parallel_for(0, N, 8, [&](int64_t begin, int64_t end) {
      for (int64_t n = begin; n < end; ++n) {
        const int64_t target = reads<int64_t>(targets)[n];
        writes<float>(out)[n] = target == kIgnored ? 0.f : row_loss(z + n * stride, V, target, softcap, gradient);
        if (target == kIgnored && gradient) std::fill_n(z + n * stride, V, T{});
      }
    });
  });
}

void loss(Tensor logits, const Tensor& targets, std::optional<double> softcap, Tensor out) {
  rows(logits, targets, softcap, out, false);
}

void loss_and_gradient(Tensor logits, const Tensor& targets, std::optional<double> softcap, Tensor out, Tensor scale) {
  rows(logits, targets, softcap, out, true);
  std::fill_n(writes<float>(scale), scale.numel(), 1.f);
}

Tensor new_buffer(const Tensor& like, int64_t n, int64_t columns) { return torch::stable::new_empty(like, {n, columns}); }

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
