// Products of 8-bit integers, summed in 32 bits without saturation: every instruction set gives the same sums.
//
// A step multiplies a group of neighbours along K (four bytes of a row) with that group of kWidth columns.
//   AMX, AVX-512 VNNI  u8 x s8, four at a time, each sum of four added to 32 bits whole
//   AVX-VNNI           the same on eight lanes (Intel's clients from Alder Lake on, servers of E-cores)
//   AVX-512, AVX2      u8 x s8 in pairs, whose sums have 16 bits: neighbours of a column add up to 128 at most (int8.h),
//                      and 255 * 128 does not saturate
//   aarch64 dotprod    s8 x s8, four at a time; rows are stored less 128, which their zero is too
//   others             s16 x s16 in pairs
#pragma once
#include <cmath>

#include "simd.h"

namespace {

#if defined(__AVX2__)
typedef uint8_t Quantized;
constexpr int32_t kOffset = 0;
#elif defined(__ARM_FEATURE_DOTPROD)
typedef int8_t Quantized;
constexpr int32_t kOffset = 128;
#else
typedef int16_t Quantized;
constexpr int32_t kOffset = 0;
#endif
constexpr int kGroup = 4 / int(sizeof(Quantized));

#if defined(__AVX2__) && !defined(__AVX512VNNI__) && !defined(__AVXVNNI__)
constexpr bool kInt8InPairs = true;
#else
constexpr bool kInt8InPairs = false;
#endif

typedef int8_t Bytes __attribute__((vector_size(kWidth * 2)));
typedef int16_t Shorts __attribute__((vector_size(kWidth * 4)));
typedef Quantized QuantizedUnaligned
    __attribute__((vector_size(kWidth * sizeof(Quantized)), aligned(1), may_alias));
typedef int32_t VecIntUnaligned __attribute__((vector_size(kWidth * 4), aligned(4), may_alias));

inline VecInt load(const int32_t* p) { return *reinterpret_cast<const VecIntUnaligned*>(p); }
inline void store(int32_t* p, VecInt x) { *reinterpret_cast<VecIntUnaligned*>(p) = x; }

// A row's group in every lane.
inline VecInt group_of(const Quantized* x) {
  int32_t bits;
  std::memcpy(&bits, x, sizeof bits);
  return bits - VecInt{};
}

// A group of kWidth columns from [kWidth][kGroup] bytes, as `dot` takes it.
inline VecInt columns_of(const int8_t* w) {
  if constexpr (kGroup == 4) return load(reinterpret_cast<const int32_t*>(w));
#if defined(__aarch64__)
  return VecInt(vreinterpretq_s32_s16(vmovl_s8(vld1_s8(w))));
#else
  Bytes bytes;
  std::memcpy(&bytes, w, sizeof bytes);
  const Shorts wide = __builtin_convertvector(bytes, Shorts);
  VecInt pairs;
  std::memcpy(&pairs, &wide, sizeof pairs);
  return pairs;
#endif
}

// Each lane's sum plus the products of its group of the row with its group of the column.
inline VecInt dot(VecInt sums, VecInt row, VecInt column) {
#if defined(__AVX512VNNI__)
  return VecInt(_mm512_dpbusd_epi32(__m512i(sums), __m512i(row), __m512i(column)));
#elif defined(__AVXVNNI__)
  return VecInt(_mm256_dpbusd_avx_epi32(__m256i(sums), __m256i(row), __m256i(column)));
#elif defined(__ARM_FEATURE_DOTPROD)
  return VecInt(vdotq_s32(sums, vreinterpretq_s8_s32(row), vreinterpretq_s8_s32(column)));
#elif defined(__aarch64__)
  const int16x8_t x = vreinterpretq_s16_s32(row), w = vreinterpretq_s16_s32(column);
  return sums + VecInt(vpaddq_s32(vmull_s16(vget_low_s16(x), vget_low_s16(w)), vmull_high_s16(x, w)));
#elif defined(__AVX512F__)
  const __m512i pairs = _mm512_maddubs_epi16(__m512i(row), __m512i(column));
  return sums + VecInt(_mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
#elif defined(__AVX2__)
  // NOTE: as in add_product, of intrinsics GCC 12 would keep sums in memory (0.95 of the speed).
  alignas(32) static constexpr int16_t kOnes[16] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1};
  VecInt product;
  asm("vpmaddubsw %3, %2, %1\n\tvpmaddwd %4, %1, %1\n\tvpaddd %1, %0, %0"
      : "+x"(sums), "=&x"(product)
      : "x"(row), "x"(column), "m"(kOnes));
  return sums;
#elif defined(__SSE2__)
  return sums + VecInt(_mm_madd_epi16(__m128i(row), __m128i(column)));
#else
  return sums + ((row << 16) >> 16) * ((column << 16) >> 16) + (row >> 16) * (column >> 16);
#endif
}

// The number at `place` of each lane's group.
inline VecInt number_of(VecInt groups, int place) {
  constexpr int kBits = 32 / kGroup;
  return (groups << ((kGroup - 1 - place) * kBits)) >> (32 - kBits);
}

// To the nearest integer, ties to even; lanes without one (NaN, too large) hold any number.
inline VecInt nearest(Vec x) {
#if defined(__AVX512F__)
  return VecInt(_mm512_cvtps_epi32(x));
#elif defined(__AVX2__)
  return VecInt(_mm256_cvtps_epi32(x));
#elif defined(__SSE2__)
  return VecInt(_mm_cvtps_epi32(x));
#elif defined(__aarch64__)
  return vcvtnq_s32_f32(x);
#else
  VecInt y;
  for (int i = 0; i < kWidth; ++i) y[i] = int32_t(std::lrint(x[i]));
  return y;
#endif
}

// Lanes -> as many numbers; lanes that have none give any.
inline void store_numbers(Quantized* to, VecInt q) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(__m256i(q)), _mm256_extracti128_si256(__m256i(q), 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_packus_epi16(words, words));
#else
  *reinterpret_cast<QuantizedUnaligned*>(to) = __builtin_convertvector(q, QuantizedUnaligned);
#endif
}

}  // namespace
