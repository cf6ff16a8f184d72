// y = activation(x w^T + bias) + residual in fp32, on a weight of 8 or 4 bits, by vectors.
//
// A number is widened to fp32 (its integer times its group's scale) before it is multiplied: in registers for few rows,
// into scratch, once for all tiles, for many. The products and their order are the same, and so are a row's bits.
#pragma once
#include "gemm.h"
#include "grouped_weight.h"

namespace {

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
