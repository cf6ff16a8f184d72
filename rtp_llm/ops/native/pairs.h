// Numbers rounded to bf16 and multiplied two at a time: a register's lane has a pair, and both products of its pairs are
// added to the lane's fp32 sum (VDPBF16PS, BFDOT). A step along k takes as long as one of fp32 and does twice as much.
// Denormal numbers, products and sums count as zero there, and BFDOT rounds sums to odd: off by up to a unit, not half.
//
// A pair is as wide as an fp32 and stands in the place of one: rows of pairs are rows of half as many floats, which are
// loaded, broadcast and stored, and otherwise left alone.
#pragma once
#include "copied_rows.h"
#include "simd.h"

namespace {

enum class Pair : uint32_t {};  // the first number in the lower half

// What a step along k takes.
template <class T>
constexpr int64_t kNumbersOf = 1;
template <>
constexpr int64_t kNumbersOf<Pair> = 2;

inline Vec load_lanes(const Pair* p, int64_t lanes) { return load_lanes(reinterpret_cast<const float*>(p), lanes); }

// sum + x column; of pairs, + both products of each lane.
template <class T>
inline __attribute__((always_inline)) Vec add_product(Vec sum, float x, Vec column) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  // NOTE: with twelve sums in sixteen registers GCC 12 would write some into the registers of factors, and so keep others
  // in memory: tiles were at 0.87 of the peak instead of 0.95 (Zen 3).
  asm("vfmadd231ps %2, %1, %0" : "+x"(sum) : "x"(column), "x"(broadcast(x)));
  return sum;
#else
  return sum + column * x;
#endif
}

#if defined(__AVX512BF16__)
constexpr bool kHasPairs = true;

template <>
inline __attribute__((always_inline)) Vec add_product<Pair>(Vec sum, float x, Vec column) {
  return Vec(_mm512_dpbf16_ps(sum, __m512bh(_mm512_set1_ps(x)), __m512bh(column)));
}

// Numbers next to each other, and those after them -> pairs of neighbours. Each is rounded to the nearest bf16, of two
// the even one, past the largest to infinity; what is no number stays none.
inline Vec neighbours(Vec first, Vec after) { return Vec(_mm512_cvtne2ps_pbh(after, first)); }

// Lane by lane, a number of the first and one of the second -> their pair.
inline Vec pairs_of(Vec first, Vec second) {
  alignas(64) static constexpr uint16_t kInTurns[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                        8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  return Vec(_mm512_permutexvar_epi16(_mm512_load_si512(kInTurns), __m512i(neighbours(first, second))));
}
#elif defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
constexpr bool kHasPairs = true;

template <>
inline __attribute__((always_inline)) Vec add_product<Pair>(Vec sum, float x, Vec column) {
  return vbfdotq_f32(sum, vreinterpretq_bf16_f32(column), vreinterpretq_bf16_f32(vdupq_n_f32(x)));
}
inline Vec neighbours(Vec first, Vec after) {
  return vreinterpretq_f32_bf16(vcvtq_high_bf16_f32(vcvtq_low_bf16_f32(first), after));
}
inline Vec pairs_of(Vec first, Vec second) {
  const uint16x8_t both = vreinterpretq_u16_f32(neighbours(first, second));
  return vreinterpretq_f32_u16(vzip1q_u16(both, vextq_u16(both, both, kWidth)));
}
#else
constexpr bool kHasPairs = false;
inline Vec neighbours(Vec first, Vec) { return first; }
inline Vec pairs_of(Vec first, Vec) { return first; }
#endif

inline Vec sum_of_pair(Vec pairs) {
  return from_bits(bits_of(pairs) << 16) + from_bits(bits_of(pairs) & int32_t(0xFFFF0000));
}

// Whether numbers of which so many bf16 parts are multiplied are taken in pairs.
constexpr bool in_pairs(int64_t bf16_parts) { return kHasPairs && bf16_parts == 1; }

inline int64_t pairs_in(int64_t numbers) { return (numbers + 1) / 2; }

// A row of K numbers -> its pairs, filled up with zeros to whole vectors.
inline void pair_row(const float* x, int64_t K, float* pairs) {
  for (int64_t k = 0; k < K; k += 2 * kWidth) {
    const int64_t left = K - k;
    const Vec after = load_lanes(x + k + kWidth, std::clamp<int64_t>(left - kWidth, 0, kWidth));
    store(pairs + k / 2, neighbours(load_lanes(x + k, std::min<int64_t>(left, kWidth)), after));
  }
}

// Rows m0:m1 of x [M, K] in pairs; `stamp` is the plan's. They lie a vector more than their length apart: rows that are
// whole pages long fall into different cache sets.
inline Rows paired_rows(const float* x, int64_t K, int64_t m0, int64_t m1, int64_t stamp) {
  const int64_t stride = (pairs_in(K) + 2 * kWidth - 1) / kWidth * kWidth;
  return made_rows(m0, m1, stride, stamp, [&](int64_t m, float* to) { pair_row(x + m * K, K, to); });
}

// Rows m0:m1 of x [M, K], as products of so many bf16 parts read them.
inline Rows factor_rows(const float* x, int64_t K, int64_t m0, int64_t m1, int64_t stamp, int64_t bf16_parts) {
  return in_pairs(bf16_parts) ? paired_rows(x, K, m0, m1, stamp) : rows_of(x, K, m0, m1, stamp);
}

// Rows of `width` numbers, `count` of them -> half as many, in place, of pairs: of a row and the one after it, or zeros.
inline void pair_up_rows(float* rows, int64_t count, int64_t width) {
  for (int64_t i = 0; i < count; i += 2)
    for (int64_t j = 0; j < width; j += kWidth) {
      const float* first = rows + i * width + j;
      store(rows + i / 2 * width + j, pairs_of(load(first), i + 1 < count ? load(first + width) : Vec{}));
    }
}

}  // namespace
