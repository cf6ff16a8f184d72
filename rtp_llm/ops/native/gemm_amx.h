// y = activation(x w^T + bias) + residual on AMX tiles, as exact as fp32.
//
// A tile product takes bf16 and adds to fp32. With each number in three bf16 parts, high, middle and low, x w is the sum
// of the six products that matter: low high, middle high, middle middle, high middle, high low, high high; what is left
// out is 2^-24 of x w or less. A weight that is bf16 has the high part only, and three products. At 2048 operations a
// cycle, six products are twice as fast as multiply-adds of vectors, and three are four times as fast.
//
// A weight is packed once, at load, into its high parts and its lower 16 bits: 4 bytes a number, which is what few rows
// wait for. Middle and low parts are made of these, once for a block of rows, and rows of x are split once for a block.
// What follows the sums of a block of y (bias, activation, residual) is done while the next block is multiplied.
//
// Each sum runs over k in blocks whose size depends on K alone, and in one order within these: a row's bits depend on
// nothing else.
#pragma once
#include <atomic>

#include "split.h"
#include "tiles.h"

namespace {

constexpr int64_t kDepth = 32;                                            // of a bf16 tile product, along k
constexpr int64_t kTile = kTileRows * kDepth;                             // numbers of a tile
constexpr int64_t kBlockRows = 2 * kTileRows;                             // rows that are multiplied together
static_assert(kPanel == 2 * kTileRows);

// What a step of a panel takes in a packed weight, [planes][2 column tiles][tile]: the high parts, and of fp32 the
// lower 16 bits of each number.
template <class T>
constexpr int64_t kStepNumbers = int64_t(sizeof(T)) / 2 * 2 * kTile;

// The middle and low parts of a step, [2 parts][2 column tiles][tile].
constexpr int64_t kLowerNumbers = 4 * kTile;

// Lines `from` to `to` of the 32 of a packed step, into middle and low parts.
inline void make_lower_parts(const uint16_t* packed, uint16_t* lower, int from, int to) {
  for (int line = from; line < to; ++line) {
    const __m512i high = _mm512_load_si512(packed + line * kDepth);
    const __m512i rest = _mm512_load_si512(packed + 2 * kTile + line * kDepth);
    const LowerParts first = lower_parts(_mm512_slli_epi32(high, 16), rest);
    const LowerParts second = lower_parts(high, _mm512_srli_epi32(rest, 16));
    _mm512_store_si512(lower + line * kDepth, paired(first.middle, second.middle));
    _mm512_store_si512(lower + 2 * kTile + line * kDepth, paired(first.low, second.low));
  }
}

// Where a block of k of a panel has its middle and low parts; `fresh` says that they are yet to be made, step by step
// while the step before is multiplied. Where the panel is multiplied once, two steps take turns, and stay in L1.
struct Lower {
  uint16_t* parts;
  bool fresh, in_turns;

  uint16_t* of(int64_t step) const { return parts + (in_turns ? step & 1 : step) * kLowerNumbers; }
};

// c[R * 16][32] = a @ b over `steps` of kDepth. a: [2 row tiles, `next` bytes apart][steps][kPlanes][tile]; b: a packed
// panel of T. `meanwhile` is called once a step.
//
// The products of the lower parts come first, over all of the block of k, and those of the high parts last: rounding
// to the size of a whole sum happens once in 32 numbers.
template <int R, class T, class F>
inline void multiply_tiles(int64_t steps, const uint16_t* a, int64_t next, const uint16_t* b, const Lower& lower,
                           float* c, F&& meanwhile) {
  constexpr bool kWhole = sizeof(T) == 4;
  constexpr int kLines = 2 * kTileRows, kSome = 7;
  const bool fresh = kWhole && lower.fresh;
  if (fresh) make_lower_parts(b, lower.of(0), 0, kLines);
  finish_stores();
  zero_sums<R>();
  for (int64_t step = 0; step < steps; ++step, b += kStepNumbers<T>) {
    const auto rows = [&](int plane) { load_rows<R>(a + (step * kPlanes + plane) * kTile, kTileLine, next); };
    const auto columns = [&](const uint16_t* tiles) { load_columns(tiles, kTileLine, kTileBytes); };
    const bool making = fresh && step + 1 < steps;
    const auto make = [&](int from) {
      if (making) make_lower_parts(b + kStepNumbers<T>, lower.of(step + 1), from, std::min(from + kSome, kLines));
    };
    columns(b);
    rows(2);
    add_bf16_products<R>();
    make(0);
    rows(1);
    add_bf16_products<R>();
    if constexpr (kWhole) {
      make(kSome);
      columns(lower.of(step));
      add_bf16_products<R>();
      make(2 * kSome);
      rows(0);
      add_bf16_products<R>();
      make(3 * kSome);
      columns(lower.of(step) + 2 * kTile);
      add_bf16_products<R>();
      make(4 * kSome);
      finish_stores();
    }
    meanwhile();
  }
  b -= steps * kStepNumbers<T>;
  for (int64_t step = 0; step < steps; ++step, b += kStepNumbers<T>) {
    load_columns(b, kTileLine, kTileBytes);
    load_rows<R>(a + step * kPlanes * kTile, kTileLine, next);
    add_bf16_products<R>();
  }
  store_sums<R>(c, kPanel * 4);
}

// A packed weight: panels, [N / 32][K / kDepth][planes][2][16 pairs][16 columns][2]; a pair is k and k + 16. Columns
// and k are filled up with zeros.
template <class T>
struct TiledWeight {
  static int64_t panel_numbers(int64_t K) { return ceil_div(K, kDepth) * kStepNumbers<T>; }

  // From w [N, K]; bf16 where T is.
  static void pack(const float* w, int64_t N, int64_t K, uint16_t* to) {
    const int64_t padded = ceil_div(K, kDepth) * kDepth;
    float* panel = panel_scratch().reserve(padded * kPanel);
    std::fill(panel, panel + padded * kPanel, 0.0f);
    for (int64_t n = 0; n < N; n += kPanel, to += panel_numbers(K)) {
      pack_weight(w + n * K, std::min<int64_t>(kPanel, N - n), K, panel);
      for (int64_t k = 0; k < padded; k += kDepth)
        for (int64_t pair = 0; pair < kTileRows; ++pair)
          halve_pair(panel + (k + pair) * kPanel, to + k / kDepth * kStepNumbers<T> + pair * kDepth);
    }
  }

 private:
  static void halve_pair(const float* first, uint16_t* tile) {
    const float* second = first + kTileRows * kPanel;
    for (int half = 0; half < 2; ++half, first += kWidth, second += kWidth, tile += kTile) {
      const Vec one = load(first), other = load(second);
      _mm512_storeu_si512(tile, paired(one, other));
      if constexpr (sizeof(T) == 4) _mm512_storeu_si512(tile + 2 * kTile, paired_lower_halves(one, other));
    }
  }
};

// Rows of x, x[rows][K] with `stride`, into tiles of their parts: [rows / 16][K / kDepth][planes][16][kDepth].
inline void split_rows(const float* x, int64_t rows, int64_t K, int64_t stride, uint16_t* to) {
  const int64_t steps = ceil_div(K, kDepth);
  for (int64_t row = 0; row < ceil_div(rows, kTileRows) * kTileRows; ++row) {
    uint16_t* tile = to + row / kTileRows * steps * kPlanes * kTile + row % kTileRows * kDepth;
    for (int64_t k = 0; k < K; k += kDepth, tile += kPlanes * kTile) {
      const int64_t left = row < rows ? K - k : 0;
      const float* from = x + row * stride + k;
      const Parts first = split(load_lanes(from, std::clamp<int64_t>(left, 0, kWidth)));
      const Parts second = split(load_lanes(from + kWidth, std::clamp<int64_t>(left - kWidth, 0, kWidth)));
      for (int plane = 0; plane < kPlanes; ++plane)
        _mm512_store_si512(tile + plane * kTile, paired(first.part[plane], second.part[plane]));
    }
  }
}

// Split rows that a thread may find again in the next task of the same command.
struct SplitRows {
  Scratch scratch;
  int64_t stamp = 0, row = 0, k = 0;
};

inline SplitRows& thread_split_rows() {
  thread_local SplitRows rows;
  return rows;
}

struct LinearTiles {
  float* y;
  const float* x;
  const void* weight;  // a `TiledWeight`
  const float *bias, *residual;
  int64_t M, N, K;
  int activation;
  bool weight_is_bf16;
  // The plan: blocks of rows, of panels and of K.
  int64_t block_rows = 0, block_panels = 0, block_k = 0, row_blocks = 0, stamp = 0;

  int64_t plan(int threads) {
    static std::atomic<int64_t> stamps{0};
    stamp = ++stamps;
    block_k = ceil_div(ceil_div(K, ceil_div(K, kMaxK)), kDepth) * kDepth;
    const int64_t most = std::max(kBlockRows, kMaxBytes / (block_k * kPlanes * 2) / kBlockRows * kBlockRows);
    const int64_t panels = ceil_div(N, kPanel), blocks = ceil_div(M, kBlockRows);
    row_blocks = ceil_div(M, most);
    if (threads > 1 && blocks >= 2 * threads) row_blocks = ceil_div(row_blocks, threads) * threads;
    block_rows = ceil_div(blocks, row_blocks) * kBlockRows;
    row_blocks = ceil_div(M, block_rows);
    block_panels = threads > 1 ? ceil_div(panels, std::min(panels, ceil_div(6 * threads, row_blocks))) : panels;
    return row_blocks * ceil_div(panels, block_panels);
  }

  void run(int64_t task) const {
    const Tiles tiles(int(std::min(M, kBlockRows)));
    // Neighbours in the list have other rows, so that threads which take turns keep to the rows that they have split.
    const int64_t m0 = task % row_blocks * block_rows, n0 = task / row_blocks * block_panels * kPanel;
    const Block block{m0, std::min(M, m0 + block_rows), n0, std::min(N, n0 + block_panels * kPanel)};
    for (int64_t k0 = 0; k0 < K; k0 += block_k) {
      const int64_t k_len = std::min(block_k, K - k0);
      const uint16_t* rows = split_block(block, k0, k_len);
      if (weight_is_bf16) multiply<uint16_t>(block, rows, k0, k_len);
      else multiply<float>(block, rows, k0, k_len);
    }
  }

 private:
  // Split rows stay in L2, beside two split panels.
  static constexpr int64_t kMaxBytes = 1200 << 10, kMaxK = 1024;

  struct Block {
    int64_t m0, m1, n0, n1;
  };

  // The sum over a block of k, after those of the blocks before, which y holds.
  struct Computed {
    const float *c, *before;  // before null: this is the first
    int64_t stride;

    Vec operator()(int64_t row, int64_t column, int64_t lanes) const {
      const Vec sum = load(c + row * kPanel + column);
      return before == nullptr ? sum : load_lanes(before + row * stride + column, lanes) + sum;
    }
  };

  // Sums that are yet to go to y, with all that follows where they are whole.
  struct Pending {
    Epilogue epilogue;
    bool first;
    const float* c = nullptr;
    int64_t m = 0, n = 0, cols = 0;
    int rows = 0;

    void advance(int most) {
      const int some = std::min(most, rows);
      if (some == 0) return;
      const float* before = first ? nullptr : epilogue.y + m * epilogue.N + n;
      epilogue.finish(Computed{c, before, epilogue.N}, some, cols, m, n);
      c += some * kPanel;
      m += some;
      rows -= some;
    }
  };

  const uint16_t* split_block(const Block& block, int64_t k0, int64_t k_len) const {
    SplitRows& split = thread_split_rows();
    const int64_t rows = block.m1 - block.m0, steps = ceil_div(k_len, kDepth);
    const int64_t numbers = ceil_div(rows, kTileRows) * steps * kPlanes * kTile;
    auto* to = reinterpret_cast<uint16_t*>(split.scratch.reserve(numbers / 2));
    if (split.stamp != stamp || split.row != block.m0 || split.k != k0)
      split_rows(x + block.m0 * K + k0, rows, k_len, K, to);
    split.stamp = stamp;
    split.row = block.m0;
    split.k = k0;
    return to;
  }

  template <class T>
  void multiply(const Block& block, const uint16_t* rows, int64_t k0, int64_t k_len) const {
    const auto* w = static_cast<const uint16_t*>(weight) + k0 / kDepth * kStepNumbers<T>;
    const int64_t steps = ceil_div(k_len, kDepth), tile_row = steps * kPlanes * kTile;
    const bool in_turns = block.m1 - block.m0 <= kBlockRows;
    const int64_t kept = sizeof(T) == 2 ? 0 : in_turns ? 2 : steps;
    auto* parts = reinterpret_cast<uint16_t*>(panel_scratch().reserve(kept * kLowerNumbers / 2));
    const Epilogue whole{y, bias, residual, N, activation}, partial{y, nullptr, nullptr, N, kNone};
    alignas(64) float sums[2][kBlockRows * kPanel];
    Pending pending{k0 + k_len == K ? whole : partial, k0 == 0};
    for (int64_t n = block.n0, turn = 0; n < block.n1; n += kPanel) {
      const uint16_t* panel = w + n / kPanel * TiledWeight<T>::panel_numbers(K);
      for (int64_t m = block.m0; m < block.m1; m += kBlockRows, turn ^= 1) {
        const int some = int(ceil_div(pending.rows, steps));
        const auto meanwhile = [&] { pending.advance(some); };
        const uint16_t* a = rows + (m - block.m0) / kTileRows * tile_row;
        const Lower lower{parts, m == block.m0, in_turns};
        if (block.m1 - m > kTileRows) multiply_tiles<2, T>(steps, a, 2 * tile_row, panel, lower, sums[turn], meanwhile);
        else multiply_tiles<1, T>(steps, a, 2 * tile_row, panel, lower, sums[turn], meanwhile);
        pending.c = sums[turn];
        pending.m = m;
        pending.n = n;
        pending.cols = std::min<int64_t>(kPanel, N - n);
        pending.rows = int(std::min(kBlockRows, block.m1 - m));
      }
    }
    pending.advance(kBlockRows);
  }
};

}  // namespace
