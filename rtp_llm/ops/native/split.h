// fp32 as the sum of three bf16, exactly: high, middle and low, of eight bits each. Of rows each part is the nearest,
// of weights each is cut off, which is less work and makes the high part the upper half of the number. Who asks for less
// has the first two, or a single one, to which either is rounded.
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

inline Vec nearest_bf16(Vec x) { return from_bits(VecInt((VecBits(bits_of(x)) + 0x8000u) & 0xFFFF0000u)); }

// The nearest, of two the even one, where nothing stands for what is left; what is no number stays none.
inline Vec even_bf16(Vec x) {
  const VecBits bits = VecBits(bits_of(x));
  const Vec nearest = from_bits(VecInt((bits + 0x7FFFu + ((bits >> 16) & 1u)) & 0xFFFF0000u));
  return Vec(_mm512_mask_mov_ps(nearest, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), broadcast(__builtin_nanf(""))));
}

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

// The first P parts, the nearest to the number together.
template <int P>
inline Parts first_parts(Vec x) {
  if constexpr (P == 1) return {even_bf16(x)};
  const Parts all = split(x);
  if constexpr (P == 2) return {all.part[0], even_bf16(x - all.part[0])};
  return all;
}

// Each part is cut off from what those before it leave; `paired` takes no more than the upper halves.
inline Parts cut(Vec x) {
  const auto rest = [](Vec y) { return y - from_bits(bits_of(y) & int32_t(0xFFFF0000)); };
  const Vec middle = rest(x);
  return {x, middle, rest(middle)};
}

template <int P>
inline Parts first_cut_parts(Vec x) {
  if constexpr (P == 1) return {even_bf16(x)};
  else return cut(x);
}

// The number that P parts make, cut off ones too.
template <int P>
inline Vec sum_of_parts(const Parts& x) {
  const auto upper = [](Vec y) { return from_bits(bits_of(y) & int32_t(0xFFFF0000)); };
  return P == 1 ? upper(x.part[0]) : upper(x.part[0]) + upper(x.part[1]);
}

// The upper halves of the first in the lower halves of the second.
inline __m512i with_lower_halves(__m512i second, __m512i first) {
  return _mm512_mask_alignr_epi8(second, 0x3333333333333333u, first, first, 2);
}

// Upper halves, in turn: that of a lane of the first in the lower half of the lane, of the second in the upper.
inline __m512i paired(Vec first, Vec second) {
  return with_lower_halves(__m512i(bits_of(second)), __m512i(bits_of(first)));
}

// The first P parts of numbers and of those that they are paired with, each `apart` numbers behind the one before.
template <int P>
inline void store_parts(const Parts& first, const Parts& second, uint16_t* line, int64_t apart) {
  for (int plane = 0; plane < P; ++plane)
    _mm512_store_si512(line + plane * apart, paired(first.part[plane], second.part[plane]));
}

inline __m512i paired_lower_halves(Vec first, Vec second) {
  const __m512i upper = _mm512_slli_epi32(__m512i(bits_of(second)), 16);
  return _mm512_mask_blend_epi16(0xAAAAAAAAu, __m512i(bits_of(first)), upper);
}

// 32 numbers, of which two are neighbours in a lane: their middle parts, and their low ones.
struct LowerParts {
  __m512i middle, low;
};

// Of numbers whose upper halves are `high` and whose lower halves are `rest`. Every instruction counts here: few rows
// wait for it, and where low parts are not stored the compiler leaves out what makes them.
inline LowerParts lower_parts(__m512i high, __m512i rest) {
  const VecInt upper = VecInt{} + int32_t(0xFFFF0000);
  const Vec first_high = from_bits(VecInt(high) << 16), second_high = from_bits(VecInt(high) & upper);
  const Vec first = from_bits((VecInt(rest) & ~upper) | bits_of(first_high)) - first_high;
  const Vec second = Vec(_mm512_castsi512_ps(with_lower_halves(high, rest))) - second_high;
  const Vec first_low = first - from_bits(bits_of(first) & upper), second_low = second - from_bits(bits_of(second) & upper);
  return {paired(first, second), paired(first_low, second_low)};
}

}  // namespace
