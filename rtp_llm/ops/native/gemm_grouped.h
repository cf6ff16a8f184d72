// y = activation(x w^T + bias) + residual in fp32, on a weight of 8 or 4 bits, by vectors.
//
// A number is widened to fp32 (its integer times its group's scale) before it is multiplied: in registers for few rows,
// into scratch, once for all tiles, for many. The products and their order are the same, and so are a row's bits. Where
// one bf16 part is multiplied, it is then rounded and paired (pairs.h).
#pragma once
#include "gemm.h"
#include "grouped_weight.h"

namespace {

// Two columns of a panel at k, or of the pair at k; past the last k there is nothing to read, and that is zero.
template <class T, int kBits>
inline __attribute__((always_inline)) void load_columns(const uint8_t* w, Vec left_scale, Vec right_scale, int64_t left,
                                                        Vec* columns) {
  widen<kBits>(w, left_scale, right_scale, columns[0], columns[1]);
  if constexpr (kNumbersOf<T> == 2) {
    Vec after[2] = {};
    if (left > 1) widen<kBits>(w + GroupedWeight<kBits>::kStep, left_scale, right_scale, after[0], after[1]);
    for (int i = 0; i < 2; ++i) columns[i] = pairs_of(columns[i], after[i]);
  }
}

// c[R, kPanel] (+)= a[R, K] @ one panel, widened in registers; K begins with a group.
template <int R, int kBits, class T, size_t... I>
void grouped_tile(int64_t K, const float* a, int64_t lda, const uint8_t* w, const uint16_t* scales, float* c, int64_t ldc,
                  bool accumulate, std::index_sequence<I...> each) {
  constexpr int64_t kNumbers = kNumbersOf<T>;
  const float* const rows[4] = {a, a + 3 * lda, a + 6 * lda, a + 9 * lda};
  Vec sums[R * 2] = {};
  for (int64_t start = 0; start < K; start += kScaled, scales += kPanel) {
    const Vec left_scale = load_lanes(scales, kWidth), right_scale = load_lanes(scales + kWidth, kWidth);
    const int64_t end = std::min(K, start + kScaled);
    for (int64_t k = start; k < end; k += kNumbers, w += kNumbers * GroupedWeight<kBits>::kStep) {
      Vec column[2];
      load_columns<T, kBits>(w, left_scale, right_scale, end - k, column);
      ((sums[I] = add_product<T>(sums[I], rows[I / 2 / 3][int64_t(I / 2 % 3) * lda + k / kNumbers], column[I % 2])), ...);
    }
  }
  if (accumulate) add_tile<2>(sums, c, ldc, each);
  store_tile<2>(sums, c, ldc, each);
}

using GroupedTile = void (*)(int64_t, const float*, int64_t, const uint8_t*, const uint16_t*, float*, int64_t, bool);

template <int R, int kBits, class T>
void grouped_tile(int64_t K, const float* a, int64_t lda, const uint8_t* w, const uint16_t* scales, float* c, int64_t ldc,
                  bool accumulate) {
  grouped_tile<R, kBits, T>(K, a, lda, w, scales, c, ldc, accumulate, std::make_index_sequence<size_t(R * 2)>{});
}

template <int kBits, class T, size_t... R>
constexpr GroupedTile grouped_tile_of(int rows, std::index_sequence<R...>) {
  constexpr GroupedTile tiles[] = {grouped_tile<int(R) + 1, kBits, T>...};
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
  int bf16_parts = 3;  // of each number that are multiplied, as in `LinearVectors`
  Blocks blocks{};
  int64_t stamp = 0;

  int64_t plan(int threads) {
    stamp = next_stamp();
    return blocks.plan(M, N, K, kScaled, threads, num_halves(activation));
  }

  void run(int64_t task) const {
    const Blocks::Part part = blocks.part(task, M);
    const int64_t panels = blocks.num_panels(part);
    const Rows rows = factor_rows(x, K, part.m0, part.m1, stamp, bf16_parts);
    const Sums sums = Sums::of(part, panels, blocks.k >= K);
    for (int64_t k0 = 0; k0 < K; k0 += blocks.k) {
      const Step step{part, rows, sums, k0, std::min(blocks.k, K - k0)};
      for (int64_t i = 0; i < panels; ++i) panel(step, i);
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

  void panel(const Step& step, int64_t number) const {
    const int64_t m0 = step.part.m0, m1 = step.part.m1, n = blocks.column(step.part, number);
    const int64_t tiles = ceil_div(m1 - m0, kRows), cols = blocks.width(step.part, number);
    const bool is_last = step.k0 + step.k_len == K;
    const Block block = block_of(n, step.k0);
    const float* wide = m1 - m0 > 2 * kRows ? widened(block, step.k_len) : nullptr;
    const Epilogue epilogue{y, bias, residual, N, activation};
    for (int64_t i = 0, m = m0; i < tiles; ++i) {
      const int rows = int(ceil_div(m1 - m, tiles - i));
      const Rows a{step.x.at(m - m0, in_pairs(bf16_parts) ? pairs_in(step.k0) : step.k0), step.x.stride};
      float* c = step.sums.tile(m - m0, number);
      Ahead ahead;
      if (is_last) ahead.awaited = epilogue.awaited(rows, m, n);
      if (wide == nullptr) multiply_narrow(rows, step.k_len, a, block, c, step.k0 > 0, ahead.awaited);
      else multiply_wide(rows, step.k_len, a, wide, c, step.k0 > 0, ahead);
      if (is_last) epilogue.finish(Computed{c}, rows, cols, m, n);
      m += rows;
    }
  }

  // A block of K of a panel, in fp32 or in pairs.
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
    if (in_pairs(bf16_parts)) pair_up_rows(wide, k_len, kPanel);
    return wide;
  }

  void multiply_wide(int rows, int64_t k_len, const Rows& a, const float* wide, float* c, bool accumulate,
                     Ahead ahead) const {
    if (!in_pairs(bf16_parts)) return multiply(rows, kPanel, k_len, a.data, a.stride, wide, c, kPanel, accumulate, ahead);
    const auto* pairs = reinterpret_cast<const Pair*>(wide);
    multiply(rows, kPanel, pairs_in(k_len), a.data, a.stride, pairs, c, kPanel, accumulate, ahead);
  }

  void multiply_narrow(int rows, int64_t k_len, const Rows& a, const Block& block, float* c, bool accumulate,
                       Awaited awaited) const {
    awaited.fetch();
    constexpr auto heights = std::make_index_sequence<size_t(kRows)>{};
    const GroupedTile tile =
        in_pairs(bf16_parts) ? grouped_tile_of<kBits, Pair>(rows, heights) : grouped_tile_of<kBits, float>(rows, heights);
    tile(k_len, a.data, a.stride, block.steps, block.scales, c, kPanel, accumulate);
  }
};

}  // namespace
