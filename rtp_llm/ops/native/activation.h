// The activations that a linear layer fuses.
#pragma once
#include "simd.h"

namespace {

enum Activation : int { kNone = 0, kGelu, kGeluTanh, kRelu, kSilu, kTanh };

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

}  // namespace
