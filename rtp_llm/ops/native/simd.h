// Vectors of fp32 as wide as the target has them, and the few functions that the kernels share.
#pragma once
#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#if defined(__SSE2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace {

#if defined(__AVX512F__)
constexpr int kWidth = 16, kRows = 12;  // 24 accumulators of 32 registers
#elif defined(__AVX2__)
constexpr int kWidth = 8, kRows = 6;  // 12 accumulators of 16 registers
#elif defined(__aarch64__)
constexpr int kWidth = 4, kRows = 12;  // 24 accumulators of 32 registers
#else
constexpr int kWidth = 4, kRows = 6;  // 12 accumulators of 16 registers
#endif
constexpr int kPanel = 2 * kWidth;  // columns of a packed weight that are computed together

typedef float Vec __attribute__((vector_size(kWidth * 4)));
typedef int32_t VecInt __attribute__((vector_size(kWidth * 4)));
typedef uint32_t VecBits __attribute__((vector_size(kWidth * 4)));  // whose sums wrap around
typedef float VecUnaligned __attribute__((vector_size(kWidth * 4), aligned(4), may_alias));

inline Vec load(const float* p) { return *reinterpret_cast<const VecUnaligned*>(p); }
inline void store(float* p, Vec x) { *reinterpret_cast<VecUnaligned*>(p) = x; }

// The first `lanes` of a vector; the others are zero, or left alone.
inline Vec load_lanes(const float* p, int64_t lanes) {
  if (lanes == kWidth) return load(p);
  Vec x{};
  std::memcpy(&x, p, size_t(lanes) * 4);
  return x;
}
inline void store_lanes(float* p, Vec x, int64_t lanes) {
  if (lanes == kWidth) return store(p, x);
  std::memcpy(p, &x, size_t(lanes) * 4);
}

// bf16 is the upper half of an fp32.
typedef uint16_t NarrowUnaligned __attribute__((vector_size(kWidth * 2), aligned(2), may_alias));

inline Vec load_lanes(const uint16_t* p, int64_t lanes) {
#if defined(__aarch64__)
  // NOTE: of __builtin_convertvector GCC 12 makes a load and a move for each number.
  if (lanes == kWidth) return Vec(vreinterpretq_f32_u32(vshll_n_u16(vld1_u16(p), 16)));
#endif
#if defined(__AVX2__) && !defined(__AVX512F__)
  if (lanes == kWidth) {  // of __builtin_convertvector GCC 12 makes five instructions
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return Vec(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16));
  }
#endif
  NarrowUnaligned narrow{};
  if (lanes == kWidth) narrow = *reinterpret_cast<const NarrowUnaligned*>(p);
  else std::memcpy(&narrow, p, size_t(lanes) * 2);
  const VecInt bits = __builtin_convertvector(narrow, VecInt) << 16;
  Vec x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

inline Vec broadcast(float x) { return x - Vec{}; }

// The smaller (larger) of bound and x; NaN in x stays NaN.
inline Vec at_most(float bound, Vec x) {
#if defined(__AVX512F__)
  return _mm512_min_ps(broadcast(bound), x);
#elif defined(__AVX2__)
  return _mm256_min_ps(broadcast(bound), x);
#elif defined(__SSE2__)
  return _mm_min_ps(broadcast(bound), x);
#else
  return x > bound ? broadcast(bound) : x;
#endif
}

inline Vec larger(Vec y, Vec x) {
#if defined(__AVX512F__)
  return _mm512_max_ps(y, x);
#elif defined(__AVX2__)
  return _mm256_max_ps(y, x);
#elif defined(__SSE2__)
  return _mm_max_ps(y, x);
#else
  return x < y ? y : x;
#endif
}
inline Vec smaller(Vec y, Vec x) {
#if defined(__AVX512F__)
  return _mm512_min_ps(y, x);
#elif defined(__AVX2__)
  return _mm256_min_ps(y, x);
#elif defined(__SSE2__)
  return _mm_min_ps(y, x);
#else
  return y < x ? y : x;
#endif
}
inline Vec at_least(float bound, Vec x) { return larger(broadcast(bound), x); }

template <int N>
struct Lanes {
  typedef float Type __attribute__((vector_size(N * 4)));
  Type low, high;
};

// Lanes are joined in halves, always in the same order.
template <int N = kWidth, class F>
inline float reduce(typename Lanes<N>::Type x, F join) {
  if constexpr (N == 4) {
    return join(join(x[0], x[2]), join(x[1], x[3]));
  } else {
    Lanes<N / 2> halves;
    std::memcpy(&halves, &x, sizeof x);
    return reduce<N / 2>(join(halves.low, halves.high), join);
  }
}

inline float sum_lanes(Vec x) {
  return reduce(x, [](auto a, auto b) { return a + b; });
}
inline float max_lanes(Vec x) {
  return reduce(x, [](auto a, auto b) { return a > b ? a : b; });
}

struct Two {
  float first, second;
};

// The two largest of all lanes, given the two largest of each.
template <int N = kWidth>
inline Two two_largest(typename Lanes<N>::Type first, typename Lanes<N>::Type second) {
  if constexpr (N == 4) {
    Two two{first[0], second[0]};
    for (int i = 1; i < 4; ++i)
      two = {std::max(two.first, first[i]), std::max(std::max(two.second, second[i]), std::min(two.first, first[i]))};
    return two;
  } else {
    Lanes<N / 2> a, b;
    std::memcpy(&a, &first, sizeof first);
    std::memcpy(&b, &second, sizeof second);
    const auto smaller = a.low < a.high ? a.low : a.high, rest = b.low > b.high ? b.low : b.high;
    return two_largest<N / 2>(a.low > a.high ? a.low : a.high, smaller > rest ? smaller : rest);
  }
}

#if defined(__AVX512F__)
inline Vec shuffle_lines(Vec a, Vec b, bool odd) {
  return odd ? Vec(_mm512_shuffle_f32x4(a, b, 0xDD)) : Vec(_mm512_shuffle_f32x4(a, b, 0x88));
}

// All lanes of sixteen vectors joined: lane i is that of x[i]. In halves, always in the same order.
template <class F>
inline Vec reduce_sixteen(const Vec* x, F join) {
  Vec fours[4];
  for (int i = 0; i < 4; ++i, x += 4) {
    const auto two = [&](Vec a, Vec b) {
      return __m512d(join(Vec(_mm512_unpacklo_ps(a, b)), Vec(_mm512_unpackhi_ps(a, b))));
    };
    const __m512d first = two(x[0], x[1]), second = two(x[2], x[3]);
    fours[i] = join(Vec(_mm512_unpacklo_pd(first, second)), Vec(_mm512_unpackhi_pd(first, second)));
  }
  const auto eight = [&](Vec a, Vec b) { return join(shuffle_lines(a, b, false), shuffle_lines(a, b, true)); };
  return eight(eight(fours[0], fours[1]), eight(fours[2], fours[3]));
}
#endif

inline VecInt lane_numbers() {
  VecInt numbers;
  for (int i = 0; i < kWidth; ++i) numbers[i] = i;
  return numbers;
}

inline VecInt bits_of(Vec x) {
  VecInt bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

inline Vec from_bits(VecInt bits) {
  Vec x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

// x y - z, rounded once where the target has that.
inline Vec product_less(Vec x, Vec y, Vec z) {
#if defined(__AVX512F__)
  return _mm512_fmsub_ps(x, y, z);
#elif defined(__FMA__)
  return _mm256_fmsub_ps(x, y, z);
#elif defined(__aarch64__)
  return vfmaq_f32(-z, x, y);
#else
  return x * y - z;
#endif
}

template <size_t N>
inline Vec horner(const float (&coefficients)[N], Vec x) {
  Vec y = broadcast(coefficients[N - 1]);
  for (int i = int(N) - 2; i >= 0; --i) y = y * x + coefficients[i];
  return y;
}

// 1.5 * 2^23: adding it rounds to an integer that then stands in the low bits.
constexpr float kRounder = 12582912.0f;

inline Vec power_of_two(Vec rounded) { return from_bits(VecInt((VecBits(bits_of(rounded)) << 23) + 0x3F800000u)); }

// The nearest integers, of two the even one, as they are or with kRounder: what they are, and x times two to them.
#if defined(__AVX512F__)
inline Vec integers(Vec x) { return Vec(_mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)); }
inline Vec value_of(Vec integers) { return integers; }
inline Vec times_two_to(Vec x, Vec integers) { return Vec(_mm512_scalef_ps(x, integers)); }
#else
inline Vec integers(Vec x) { return x + kRounder; }
inline Vec value_of(Vec integers) { return integers - kRounder; }
inline Vec times_two_to(Vec x, Vec integers) { return x * power_of_two(integers); }
#endif

// 2^x for x in [-0.5, 0.5].
constexpr float kExp2[] = {1.0f,           0.69314718246f,  0.24022650719f,  0.055503271520f,
                           0.00961802527f, 0.0013400432654f, 0.00015469732170f};

// 2^x for x in [-126, 127], relative error 8e-8; below, as at -126.
inline Vec exp2(Vec x) {
  x = at_least(-126.0f, x);
  const Vec nearest = integers(x);
  return times_two_to(horner(kExp2, x - value_of(nearest)), nearest);
}

// e^x for x in [-87.3, 88.3], clamped outside; relative error 1e-7.
inline Vec exp(Vec x) {
  constexpr float p[] = {1.0f,           1.0f,           0.5f,           0.16666576266f,
                         0.04166646674f, 0.00836317521f, 0.00139336439f};
  x = at_most(88.3f, at_least(-87.3f, x));
  const Vec rounded = x * 1.44269504089f + kRounder;
  const Vec n = rounded - kRounder;
  Vec r = x - n * 0.693145751953125f;  // ln 2 in two parts: the first times n is exact
  r = r - n * 1.42860682030941723e-6f;
  return horner(p, r) * power_of_two(rounded);
}

}  // namespace
