// A weight of 8 or 4 bits: groups of 32 along K, a bf16 scale each. ops/weight_only.py is the definition.
#pragma once
#include <cmath>
#include <cstring>

#include "simd.h"

namespace {

constexpr int64_t kScaled = 32;  // neighbours along K with one scale

// A byte for each lane. NOTE: of __builtin_convertvector on bytes GCC 12 makes a chain of moves, at a quarter of the speed.
inline VecInt load_bytes(const uint8_t* p) {
#if defined(__AVX512F__)
  return VecInt(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))));
#elif defined(__AVX2__)
  return VecInt(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
#elif defined(__aarch64__)
  uint32_t four;
  std::memcpy(&four, p, sizeof four);
  return VecInt(vmovl_s16(vget_low_s16(vmovl_s8(vcreate_s8(four)))));
#else
  VecInt x;
  for (int i = 0; i < kWidth; ++i) x[i] = int8_t(p[i]);
  return x;
#endif
}

// Two vectors of columns at one k, as they are stored: a byte each, or a byte for both.
template <int kBits>
inline __attribute__((always_inline)) void widen(const uint8_t* w, Vec left_scale, Vec right_scale, Vec& left, Vec& right) {
  if constexpr (kBits == 8) {
    left = __builtin_convertvector(load_bytes(w), Vec) * left_scale;
    right = __builtin_convertvector(load_bytes(w + kWidth), Vec) * right_scale;
  } else {
    const VecInt both = load_bytes(w);
    left = __builtin_convertvector((both << 28) >> 28, Vec) * left_scale;
    right = __builtin_convertvector(both >> 4, Vec) * right_scale;
  }
}

// A packed weight: per panel the scales [ceil(K / kScaled)][kPanel], then the numbers [K][kPanel].
template <int kBits>
struct GroupedWeight {
  int64_t N, K;

  static constexpr int64_t kStep = kPanel * kBits / 8;  // bytes of a panel at one k
  int64_t groups() const { return ceil_div(K, kScaled); }
  int64_t panel_bytes() const { return ceil_div(groups() * kPanel * 2 + K * kStep, 64) * 64; }
  int64_t bytes() const { return ceil_div(N, kPanel) * panel_bytes(); }

  void pack(const float* w, void* packed) const {
    std::memset(packed, 0, size_t(bytes()));
    for (int64_t n = 0; n < N; ++n) {
      auto* panel = static_cast<uint8_t*>(packed) + n / kPanel * panel_bytes();
      auto* scales = reinterpret_cast<uint16_t*>(panel) + n % kPanel;
      for (int64_t k = 0; k < K; k += kScaled)
        scales[k / kScaled * kPanel] = pack_group(w + n * K + k, std::min(kScaled, K - k), n % kPanel,
                                                  panel + groups() * kPanel * 2 + k * kStep);
    }
  }

 private:
  // The group's scale, a bf16; its numbers go to `column` of each step.
  static uint16_t pack_group(const float* w, int64_t n, int64_t column, uint8_t* steps) {
    constexpr float kLow = kBits == 8 ? -127.0f : -8.0f, kHigh = kBits == 8 ? 127.0f : 7.0f;
    float largest = 0.0f;
    for (int64_t i = 0; i < n; ++i)
      if (std::fabs(w[i]) > std::fabs(largest)) largest = w[i];
    const float exact = kBits == 8 ? std::fabs(largest) / 127.0f : largest / -8.0f;
    uint32_t bits;
    std::memcpy(&bits, &exact, sizeof bits);
    bits = (bits + 0x7FFFu + ((bits >> 16) & 1u)) & 0xFFFF0000u;
    float scale;
    std::memcpy(&scale, &bits, sizeof scale);
    if (!(std::fabs(scale) > 1e-30f)) return 0;
    const float inverse = 1.0f / scale;
    for (int64_t i = 0; i < n; ++i) {
      const int q = int(std::min(kHigh, std::max(kLow, std::nearbyint(w[i] * inverse))));
      if constexpr (kBits == 8) steps[i * kStep + column] = uint8_t(q);
      else steps[i * kStep + column % kWidth] |= uint8_t((q & 15) << (column < kWidth ? 0 : 4));
    }
    return uint16_t(bits >> 16);
  }
};

}  // namespace
