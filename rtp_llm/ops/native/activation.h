// The activations that a linear layer fuses.
#pragma once
#include <type_traits>

#include "simd.h"

namespace {

enum Activation : int { kNone = 0, kGelu, kGeluTanh, kRelu, kSilu, kTanh };

// Added to an activation: it makes gates of the first half of a product's columns, and the others are multiplied by them.
constexpr int kGates = 8;

inline int num_halves(int activation) { return activation >= kGates ? 2 : 1; }

#if defined(__AVX512F__)
// Phi(x) - 0.5 around i / kGeluSteps, as a polynomial in kGeluSteps x - i, fitted between the two halves next to i: a
// coefficient is two registers, of which a lane takes its own. The last is where |x| stops to count.
constexpr float kGeluSteps = 5.625f;
alignas(64) constexpr float kHalfPhi[5][32] = {
 {0.0f, 0.0705512464f, 0.138913289f, 0.203098565f, 0.261492312f, 0.312968612f, 0.356938809f,
  0.393331975f, 0.422519118f, 0.445200711f, 0.462279826f, 0.47474122f, 0.483551294f, 0.489586651f, 0.493592858f,
  0.496169627f, 0.497775555f, 0.498745382f, 0.499312848f, 0.499634624f, 0.499811411f, 0.499905527f, 0.499954075f,
  0.499978334f, 0.499990076f, 0.499995589f, 0.499998093f, 0.499999195f, 0.499999672f, 0.499999881f, 0.49999994f,
  0.5f},
 {0.0709230378f, 0.0698110908f, 0.0665787533f, 0.0615206771f, 0.0550783239f, 0.0477765165f, 0.0401534066f,
  0.0326967426f, 0.0257964935f, 0.0197192784f, 0.0146047948f, 0.0104803061f, 0.00728662778f, 0.00490855007f,
  0.0032037152f, 0.00202594954f, 0.00124130154f, 0.000736885355f, 0.000423834717f, 0.00023619298f,
  0.000127529696f, 6.67159256e-05f, 3.38159443e-05f, 1.66068494e-05f, 7.90181275e-06f, 3.64283824e-06f,
  1.62714662e-06f, 7.04185481e-07f, 2.9527115e-07f, 1.19957789e-07f, 4.72181938e-08f, 1.80079258e-08f},
 {0.0f, -0.00110318582f, -0.00210421416f, -0.0029165314f, -0.00348148937f, -0.00377493002f,
  -0.00380713376f, -0.00361682149f, -0.00326118432f, -0.00280451844f, -0.00230791792f, -0.00182176253f,
  -0.00138176163f, -0.00100837497f, -0.000708773907f, -0.000480226299f, -0.000313851109f, -0.000197959162f,
  -0.000120558041f, -7.09166488e-05f, -4.03059785e-05f, -2.21399951e-05f, -1.17563777e-05f, -6.03594299e-06f,
  -2.99687599e-06f, -1.43916816e-06f, -6.68548068e-07f, -3.00458481e-07f, -1.30651316e-07f, -5.49746453e-08f,
  -2.23855583e-08f, -8.82194229e-09f},
 {-0.000373033603f, -0.000355597236f, -0.000305976602f, -0.000231662882f, -0.000143383091f, -5.29564131e-05f,
  2.88769497e-05f, 9.41616236e-05f, 0.000138631134f, 0.000161741089f, 0.000165981022f, 0.000155764341f,
  0.000136231291f, 0.00011223917f, 8.76960985e-05f, 6.52732124e-05f, 4.64283185e-05f, 3.16324913e-05f,
  2.06800378e-05f, 1.29906775e-05f, 7.84960412e-06f, 4.56648468e-06f, 2.5594652e-06f, 1.38296593e-06f,
  7.20758408e-07f, 3.62469905e-07f, 1.75962384e-07f, 8.24846822e-08f, 3.73468794e-08f, 1.63369211e-08f,
  6.90582702e-09f, 2.82146551e-09f},
 {0.0f, 8.60507862e-06f, 1.58902258e-05f, 2.08160382e-05f, 2.28285953e-05f, 2.19357153e-05f,
  1.86498401e-05f, 1.38169262e-05f, 8.39848963e-06f, 3.26375698e-06f, -9.57044563e-07f, -3.93550408e-06f,
  -5.62838386e-06f, -6.20588344e-06f, -5.95601068e-06f, -5.19646528e-06f, -4.20795004e-06f, -3.19971832e-06f,
  -2.30139472e-06f, -1.57335398e-06f, -1.02592446e-06f, -6.39678319e-07f, -3.82125251e-07f, -2.19030568e-07f,
  -1.20610139e-07f, -6.38660822e-08f, -3.254749e-08f, -1.59742797e-08f, -7.55497354e-09f, -3.44481865e-09f,
  -1.51497792e-09f, -6.42854048e-10f}};

// x * Phi(x): Phi - 0.5 is odd. Error 9e-8 |x|, where torch's is 1.1e-7. It takes half the time of a polynomial
// over the whole range, which is what targets without such a lookup have.
inline Vec gelu(Vec x) {
  const Vec magnitude = from_bits(bits_of(x) & 0x7FFFFFFF);
  const Vec place = at_most(31.0f, magnitude * kGeluSteps), step = place + kRounder;
  const Vec rest = place - (step - kRounder);
  const auto coefficient = [&](int i) {
    return Vec(_mm512_permutex2var_ps(load(kHalfPhi[i]), __m512i(bits_of(step)), load(kHalfPhi[i] + kWidth)));
  };
  Vec half = coefficient(4);
  for (int i = 3; i >= 0; --i) half = half * rest + coefficient(i);
  return magnitude * half + x * 0.5f;
}
#else
// x * Phi(x): Phi - 0.5 is odd, so it is x times a polynomial in x^2, fitted on [0, 5.5^2] and written in
// u = 2 x^2 / 5.5^2 - 1 to keep the terms small. Error 1.4e-7 |x|, less than half that of 0.5 x (1 + erff(x / sqrt 2)).
inline Vec gelu(Vec x) {
  constexpr float p[] = {0.12855193f,    -0.06417231262f, 0.0477377959f,   -0.03879379481f,
                         0.03206722438f, -0.02603615075f, 0.02038480714f,  -0.015062524f,
                         0.01016421244f, -0.00665067835f, 0.00472356984f,  -0.00265870243f,
                         0.0006399065f,  -0.00035675461f, 0.00065623666f,  -0.00028567633f};
  const Vec clamped = at_most(5.5f, at_least(-5.5f, x));
  const Vec u = clamped * clamped * (2.0f / (5.5f * 5.5f)) - 1.0f;
  return x * (clamped * horner(p, u) + 0.5f);
}
#endif

inline Vec silu(Vec x) { return x / (1.0f + exp(-x)); }

// 0.5 x (1 + tanh(u)) = x / (1 + exp(-2u)), u = sqrt(2 / pi) (x + 0.044715 x^3)
inline Vec gelu_tanh(Vec x) {
  const Vec cubic = x * x * 0.044715f + 1.0f;
  return x / (1.0f + exp(x * cubic * -1.5957691216f));
}

inline Vec relu(Vec x) { return at_least(0.0f, x); }

// An odd polynomial for |x| <= 0.625, 1 - 2 / (exp(2|x|) + 1) beyond.
inline Vec tanh(Vec x) {
  constexpr float p[] = {-0.333333283663f, 0.133327826857f, -0.0538524985f, 0.0210036412f, -0.006104947f};
  const VecInt sign = bits_of(x) & int32_t(0x80000000);
  const Vec magnitude = from_bits(bits_of(x) ^ sign);
  const Vec square = x * x;
  const Vec small = x + x * square * horner(p, square);
  const Vec large = 1.0f - 2.0f / (exp(magnitude * 2.0f) + 1.0f);
  return magnitude > 0.625f ? from_bits(bits_of(large) | sign) : small;
}

inline Vec identity(Vec x) { return x; }

// Calls `work` with the function of an activation as the value of a type.
template <class Work>
inline void with_activation(int activation, const Work& work) {
  switch (activation) {
    case kGelu: return work(std::integral_constant<Vec (*)(Vec), gelu>());
    case kGeluTanh: return work(std::integral_constant<Vec (*)(Vec), gelu_tanh>());
    case kRelu: return work(std::integral_constant<Vec (*)(Vec), relu>());
    case kSilu: return work(std::integral_constant<Vec (*)(Vec), silu>());
    case kTanh: return work(std::integral_constant<Vec (*)(Vec), tanh>());
    default: return work(std::integral_constant<Vec (*)(Vec), identity>());
  }
}

}  // namespace
