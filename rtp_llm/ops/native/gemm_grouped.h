// y = activation(x w^T + bias) + residual in fp32, on a weight of 8 or 4 bits: groups of 32 along K, a bf16 scale each.
//
// A number is widened to fp32 (its integer times its group's scale) before it is multiplied: in registers for few rows,
// into scratch, once for all tiles, for many. The products and their order are the same, and so are a row's bits.
// ops/weight_only.py is the definition.
#pragma once
#include "gemm.h"

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

// c[R, kPanel] (+)= a[R, K] @ one panel, widened in registers; K begins with a group.
template <int R, int kBits, size_t... I>
void grouped_tile(int64_t K, const float* a, int64_t lda, const uint8_t* w, const uint16_t* scales, float* c, int64_t ldc,
                  bool accumulate, std::index_sequence<I...> each) {
  const float* const rows[4] = {a, a + 3 * lda, a + 6 * lda, a + 9 * lda};
  Vec sums[R * 2] = {};
  for (int64_t start = 0; start < K; start += kScaled, scales += kPanel) {
    const Vec left_scale = load_lanes(scales, kWidth), right_scale = load_lanes(scales + kWidth, kWidth);
    for (int64_t k = start, end = std::min(K, start + kScaled); k < end; ++k, w += GroupedWeight<kBits>::kStep) {
      Vec column[2];
      widen<kBits>(w, left_scale, right_scale, column[0], column[1]);
      ((sums[I] += column[I % 2] * rows[I / 2 / 3][int64_t(I / 2 % 3) * lda + k]), ...);
    }
  }
  if (accumulate) add_tile<2>(sums, c, ldc, each);
  store_tile<2>(sums, c, ldc, each);
}

template <int kBits>
using GroupedTile = void (*)(int64_t, const float*, int64_t, const uint8_t*, const uint16_t*, float*, int64_t, bool);

template <int R, int kBits>
void grouped_tile(int64_t K, const float* a, int64_t lda, const uint8_t* w, const uint16_t* scales, float* c, int64_t ldc,
                  bool accumulate) {
  grouped_tile<R, kBits>(K, a, lda, w, scales, c, ldc, accumulate, std::make_index_sequence<size_t(R * 2)>{});
}

template <int kBits, size_t... R>
constexpr GroupedTile<kBits> grouped_tile_of(int rows, std::index_sequence<R...>) {
  constexpr GroupedTile<kBits> tiles[] = {grouped_tile<int(R) + 1, kBits>...};
  return tiles[rows - 1];
}

template <int kBits>
struct LinearGrouped {
  float* y;
  const float* x;
  const void* weight;
  const float *bias, *residual;
  int64_t M, N, K;
  int activation;
  Blocks blocks{};
  int64_t stamp = 0;

  int64_t plan(int threads) {
    stamp = next_stamp();
    return blocks.plan(M, N, K, kScaled, threads);
  }

  void run(int64_t task) const {
    const Blocks::Part part = blocks.part(task, M, N);
    const Rows rows = rows_of(x, K, part.m0, part.m1, stamp);
    const Sums sums = Sums::of(part, blocks.k >= K);
    for (int64_t k0 = 0; k0 < K; k0 += blocks.k) {
      const Step step{part, rows, sums, k0, std::min(blocks.k, K - k0)};
      for (int64_t n = part.n0; n < part.n1; n += kPanel) panel(step, n);
    }
  }

 private:
  struct Block {
    const uint8_t* steps;
    const uint16_t* scales;
  };

  Block block_of(int64_t n, int64_t k0) const {
    const GroupedWeight<kBits> packed{N, K};
    const auto* panel = static_cast<const uint8_t*>(weight) + n / kPanel * packed.panel_bytes();
    return {panel + packed.groups() * kPanel * 2 + k0 * packed.kStep,
            reinterpret_cast<const uint16_t*>(panel) + k0 / kScaled * kPanel};
  }

  void panel(const Step& step, int64_t n) const {
    const auto [m0, m1, n0, n1] = step.part;
    const int64_t tiles = ceil_div(m1 - m0, kRows);
    const bool is_last = step.k0 + step.k_len == K;
    const Block block = block_of(n, step.k0);
    const float* wide = m1 - m0 > 2 * kRows ? widened(block, step.k_len) : nullptr;
    const Epilogue epilogue{y, bias, residual, N, activation};
    for (int64_t i = 0, m = m0; i < tiles; ++i) {
      const int rows = int(ceil_div(m1 - m, tiles - i));
      const Rows a{step.x.at(m - m0, step.k0), step.x.stride};
      float* c = step.sums.tile(m - m0, (n - n0) / kPanel);
      if (is_last) epilogue.fetch(rows, m, n);
      if (wide != nullptr) multiply(rows, kPanel, step.k_len, a.data, a.stride, wide, c, kPanel, step.k0 > 0);
      else multiply_narrow(rows, step.k_len, a, block, c, step.k0 > 0);
      if (is_last) epilogue.finish(Computed{c}, rows, std::min<int64_t>(kPanel, n1 - n), m, n);
      m += rows;
    }
  }

  const float* widened(const Block& block, int64_t k_len) const {
    float* wide = panel_scratch().reserve(k_len * kPanel);
    for (int64_t k = 0; k < k_len; ++k) {
      const uint16_t* scales = block.scales + k / kScaled * kPanel;
      Vec left, right;
      widen<kBits>(block.steps + k * GroupedWeight<kBits>::kStep, load_lanes(scales, kWidth),
                   load_lanes(scales + kWidth, kWidth), left, right);
      store(wide + k * kPanel, left);
      store(wide + k * kPanel + kWidth, right);
    }
    return wide;
  }

  void multiply_narrow(int rows, int64_t k_len, const Rows& a, const Block& block, float* c, bool accumulate) const {
    constexpr auto heights = std::make_index_sequence<size_t(kRows)>{};
    grouped_tile_of<kBits>(rows, heights)(k_len, a.data, a.stride, block.steps, block.scales, c, kPanel, accumulate);
  }
};

}  // namespace
