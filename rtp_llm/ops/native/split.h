// fp32 as the sum of three bf16, exactly: high, middle and low, of eight bits each. Of rows each part is the nearest,
// of weights each is cut off, which is less work and makes the high part the upper half of the number.
//
// Of numbers below 2^-110 the low part is denormal, and a bf16 product takes that as zero; of those below 2^-118 the
// middle part too. Infinity and NaN give parts of which one is infinite or no number.
#pragma once
#include "simd.h"

namespace {

constexpr int kPlanes = 3;  // high, middle, low

struct Parts {
  Vec part[kPlanes];  // the upper half of each lane is the bf16
};

inline Vec nearest_bf16(Vec x) { return from_bits((bits_of(x) + 0x8000) & int32_t(0xFFFF0000)); }

// Each part is the nearest bf16 to what those before it leave.
inline Parts split(Vec x) {
  // Past the largest bf16, that one: the parts of every finite number are finite.
  constexpr float kLargest = 3.3895313892515355e38f;
  constexpr int kLeastMagnitude = 2;
  const Vec high = nearest_bf16(Vec(_mm512_range_ps(x, broadcast(kLargest), kLeastMagnitude)));
  const Vec rest = x - high;
  const Vec middle = nearest_bf16(rest);
  return {high, middle, rest - middle};
}

struct LowerParts {
  Vec middle, low;
};

// Of numbers whose upper halves are those of `upper`, and whose lower halves are those of `lower`.
inline LowerParts lower_parts(__m512i upper, __m512i lower) {
  constexpr __mmask32 kUpper = 0xAAAAAAAA;
  const Vec high = Vec(_mm512_castsi512_ps(_mm512_maskz_mov_epi16(kUpper, upper)));
  const Vec rest = Vec(_mm512_castsi512_ps(_mm512_mask_blend_epi16(kUpper, lower, upper))) - high;
  return {rest, rest - from_bits(bits_of(rest) & int32_t(0xFFFF0000))};
}

// Upper halves, in turn: that of a lane of the first in the lower half of the lane, of the second in the upper.
inline __m512i paired(Vec first, Vec second) {
  const __m512i lower = _mm512_srli_epi32(__m512i(bits_of(first)), 16);
  return _mm512_mask_blend_epi16(0xAAAAAAAAu, lower, __m512i(bits_of(second)));
}

inline __m512i paired_lower_halves(Vec first, Vec second) {
  const __m512i upper = _mm512_slli_epi32(__m512i(bits_of(second)), 16);
  return _mm512_mask_blend_epi16(0xAAAAAAAAu, __m512i(bits_of(first)), upper);
}

}  // namespace
