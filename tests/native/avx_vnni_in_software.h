// AVX-VNNI's product in AVX2's instructions, included before the kernels (g++ -D__AVXVNNI__ -include): these then run on a
// CPU without it.
#pragma once
#include <immintrin.h>

// Each lane's sum plus the products of four unsigned bytes with four signed ones; it wraps around.
inline __m256i dot_in_software(__m256i sums, __m256i bytes, __m256i signed_bytes) {
  const __m256i even = _mm256_set1_epi16(0xFF);
  const __m256i low = _mm256_madd_epi16(_mm256_and_si256(bytes, even),
                                        _mm256_srai_epi16(_mm256_slli_epi16(signed_bytes, 8), 8));
  const __m256i high = _mm256_madd_epi16(_mm256_srli_epi16(bytes, 8), _mm256_srai_epi16(signed_bytes, 8));
  return _mm256_add_epi32(sums, _mm256_add_epi32(low, high));
}

#define _mm256_dpbusd_avx_epi32 dot_in_software
