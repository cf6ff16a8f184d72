// y = activation(x w^T + bias) + residual on AMX tiles, as exact as fp32.
//
// A tile product takes bf16 and adds to fp32. With each number in three bf16 parts, high, middle and low, x w is the sum
// of the six products that matter: low high, middle high, middle middle, high middle, high low, high high; what is left
// out is 2^-24 of x w or less. A weight that is bf16 has the high part only, and three products. At 2048 operations a
// cycle, six products are twice as fast as multiply-adds of vectors, and three are four times as fast.
//
// Who asks for less has fewer parts of each number: two, and three products, which leave out less than 2^-13 of x w, and
// mostly 2^-16; or one, and one product of what is rounded to bf16.
//
// A weight is packed once, at load, into its high parts and its lower 16 bits: 4 bytes a number, which is what few rows
// wait for. Middle and low parts are made of these, once for a block of rows, and rows of x are split once a core.
// What follows the sums of a block of y (bias, activation, residual) is done while the next block is multiplied.
//
// Each sum runs over k in blocks whose size depends on K alone, and in one order within these: a row's bits depend on
// nothing else.
#pragma once
#include <array>
#include <atomic>

#include "products_amx.h"

namespace {

// A packed weight: panels, [N / 32][planes][K / kDepth][2][16 pairs][16 columns][2]; a pair is k and k + 16. Columns and
// k are filled up with zeros. The planes are the high parts and, of fp32, the lower 16 bits of each number: two sequences
// of addresses, which the hardware's prefetch follows. Where both took turns within a page it did not.
template <class T>
struct TiledWeight {
  static int64_t plane_numbers(int64_t K) { return ceil_div(K, kDepth) * kStepNumbers; }
  static int64_t panel_numbers(int64_t K) { return plane_numbers(K) * int64_t(sizeof(T) / 2); }

  // From w [N, K]; bf16 where T is.
  static void pack(const float* w, int64_t N, int64_t K, uint16_t* to) {
    const int64_t padded = ceil_div(K, kDepth) * kDepth;
    float* panel = panel_scratch().reserve(padded * kPanel);
    std::fill(panel, panel + padded * kPanel, 0.0f);
    for (int64_t n = 0; n < N; n += kPanel, to += panel_numbers(K)) {
      pack_weight(w + n * K, std::min<int64_t>(kPanel, N - n), K, panel);
      for (int64_t k = 0; k < padded; k += kDepth)
        for (int64_t pair = 0; pair < kTileRows; ++pair)
          halve_pair(panel + (k + pair) * kPanel, to + k / kDepth * kStepNumbers + pair * kDepth, plane_numbers(K));
    }
  }

 private:
  static void halve_pair(const float* first, uint16_t* tile, int64_t apart) {
    const float* second = first + kTileRows * kPanel;
    for (int half = 0; half < 2; ++half, first += kWidth, second += kWidth, tile += kTile) {
      const Vec one = load(first), other = load(second);
      _mm512_storeu_si512(tile, paired(one, other));
      if constexpr (sizeof(T) == 4) _mm512_storeu_si512(tile + apart, paired_lower_halves(one, other));
    }
  }
};

// Rows of x, x[rows][K] with `stride`, and zeros for those up to `filled`, into tiles of their first P parts:
// [filled / 16][K / kDepth][P][16][kDepth].
template <int P>
inline void split_rows(const float* x, int64_t rows, int64_t filled, int64_t K, int64_t stride, uint16_t* to) {
  const int64_t steps = ceil_div(K, kDepth);
  for (int64_t row = 0; row < filled; ++row) {
    uint16_t* tile = to + row / kTileRows * steps * P * kTile + row % kTileRows * kDepth;
    for (int64_t k = 0; k < K; k += kDepth, tile += P * kTile) {
      const int64_t left = row < rows ? K - k : 0;
      const float* from = x + row * stride + k;
      const Parts first = first_parts<P>(load_lanes(from, std::clamp<int64_t>(left, 0, kWidth)));
      const Parts second = first_parts<P>(load_lanes(from + kWidth, std::clamp<int64_t>(left - kWidth, 0, kWidth)));
      store_parts<P>(first, second, tile, kTile);
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

// Counts up from 0, from any thread; a copy begins anew.
class Counter {
 public:
  Counter() = default;
  Counter(const Counter&) {}
  Counter& operator=(const Counter&) {
    count_.store(0, std::memory_order_relaxed);
    return *this;
  }
  int next() { return count_.fetch_add(1, std::memory_order_relaxed); }
  bool operator<(const Counter& other) const {
    return count_.load(std::memory_order_relaxed) < other.count_.load(std::memory_order_relaxed);
  }

 private:
  std::atomic<int> count_{0};
};

using Counters = std::array<Counter, 32>;

// Steps from `k0` on of the panel at column `n` of a weight, high parts and, `apart` numbers behind, middle ones, tiles of
// both as `TiledWeight` has them.
using WidenPanel = void (*)(const void* weight, int64_t K, int64_t n, int64_t k0, int64_t steps, uint16_t* to,
                            int64_t apart);

struct LinearTiles {
  float* y;
  const float* x;
  const void* weight;  // a `TiledWeight`, or what `widen` reads
  const float *bias, *residual;
  int64_t M, N, K;
  int activation;
  bool weight_is_bf16 = false;
  int bf16_parts = kPlanes;  // of each number that are multiplied; a weight that is bf16 has one
  WidenPanel widen = nullptr;
  // The plan: blocks of rows, of panels and of K; panels that are multiplied together.
  int64_t block_rows = 0, block_panels = 0, block_k = 0, row_blocks = 0, column_blocks = 0, width = 1, stamp = 0;
  mutable Counters taken = {};  // blocks of columns, by block of rows

  int64_t plan(int threads) {
    stamp = next_stamp();
    block_k = ceil_div(ceil_div(K, ceil_div(K, kMaxK)), kDepth) * kDepth;
    const int64_t most = std::max(kBlockRows, kMaxBytes / (block_k * bf16_parts * 2) / kBlockRows * kBlockRows);
    const int64_t panels = ceil_div(N, kPanel), blocks = ceil_div(M, kBlockRows);
    row_blocks = ceil_div(M, most);
    if (threads > 1) row_blocks = shared_row_blocks(threads, blocks);
    block_rows = ceil_div(blocks, row_blocks) * kBlockRows;
    row_blocks = ceil_div(M, block_rows);
    width = M <= kTileRows && panels >= 2 * threads ? 2 : 1;
    const int64_t widths = ceil_div(panels, width);
    block_panels = threads > 1 ? std::max<int64_t>(1, widths * row_blocks / (6 * threads)) * width : panels;
    column_blocks = ceil_div(panels, block_panels);
    taken = {};
    return row_blocks * column_blocks;
  }

  void run(int64_t task) const {
    if (bf16_parts == 3) run_parts<3>(task);
    else if (bf16_parts == 2) run_parts<2>(task);
    else run_parts<1>(task);
  }

 private:
  // Split rows stay in L2, beside two split panels.
  static constexpr int64_t kMaxBytes = 1200 << 10, kMaxAllBytes = 1536 << 10, kMaxK = 1024;

  struct Block {
    int64_t m0, m1, n0, n1;
  };

  template <int P>
  void run_parts(int64_t task) const {
    const Tiles tiles(int(std::min(M, kBlockRows)));
    const Block block = take(task);
    for (int64_t k0 = 0; k0 < K; k0 += block_k) {
      const int64_t k_len = std::min(block_k, K - k0);
      const uint16_t* rows = split_block<P>(block, k0, k_len);
      multiply_by<P>(block, rows, k0, k_len);
    }
  }

  template <int P>
  void multiply_by(const Block& block, const uint16_t* rows, int64_t k0, int64_t k_len) const {
    if (widen != nullptr) multiply<Widened, P>(block, rows, k0, k_len);
    else if (weight_is_bf16) multiply<uint16_t, P>(block, rows, k0, k_len);
    else multiply<float, P>(block, rows, k0, k_len);
  }

  // A thread splits M / blocks rows, and makes the lower parts of N blocks / threads columns; a number of the first
  // costs three times one of the second.
  int64_t shared_row_blocks(int threads, int64_t most) const {
    int64_t blocks = row_blocks;
    while (blocks < threads && 2 * blocks * blocks * N < 3 * M * threads) ++blocks;
    return most < 2 * blocks ? row_blocks : blocks;
  }

  // The block of this task: every task takes one, of the rows that the thread has split as long as there are some.
  Block take(int64_t task) const {
    int64_t row = task % row_blocks, column = task / row_blocks;
    if (row_blocks > 1 && row_blocks <= int64_t(taken.size())) {
      const SplitRows& split = thread_split_rows();
      if (split.stamp == stamp) row = split.row / block_rows;
      while ((column = taken[size_t(row)].next()) >= column_blocks)
        row = std::min_element(taken.begin(), taken.begin() + row_blocks) - taken.begin();
    }
    const int64_t m0 = row * block_rows, n0 = column * block_panels * kPanel;
    return {m0, std::min(M, m0 + block_rows), n0, std::min(N, n0 + block_panels * kPanel)};
  }

  // The sum over a block of k, after those of the blocks before, which y holds.
  struct Computed {
    const float *c, *before;  // before null: this is the first
    int64_t stride;

    Vec operator()(int64_t row, int64_t column, int64_t lanes) const {
      const Vec sum = load(c + row * kPanel + column);
      return before == nullptr ? sum : load_lanes(before + row * stride + column, lanes) + sum;
    }
  };

  // Sums that are yet to go to y, with all that follows where they are whole: of two panels, or one.
  struct Pending {
    struct Sums {
      const float* c;
      int64_t m, n;
      int rows = 0;
    };

    Epilogue epilogue;
    bool first;
    Sums sums[2] = {};

    int rows() const { return sums[0].rows + sums[1].rows; }

    void advance(int most) {
      for (Sums& part : sums) {
        const int some = std::min(most, part.rows);
        if (some == 0) continue;
        const int64_t cols = std::min<int64_t>(kPanel, epilogue.N - part.n);
        const float* before = first ? nullptr : epilogue.y + part.m * epilogue.N + part.n;
        epilogue.finish(Computed{part.c, before, epilogue.N}, some, cols, part.m, part.n);
        part.c += some * kPanel;
        part.m += some;
        part.rows -= some;
        most -= some;
      }
    }
  };

  // The split rows of a block, of all of K where they stay in L2.
  template <int P>
  const uint16_t* split_block(const Block& block, int64_t k0, int64_t k_len) const {
    SplitRows& split = thread_split_rows();
    const int64_t rows = block.m1 - block.m0, padded = ceil_div(rows, kTileRows) * kTileRows * P;
    const int64_t filled = M <= kBlockRows ? rows : ceil_div(rows, kTileRows) * kTileRows;  // tiles are no larger
    const bool all = padded * K * 2 <= kMaxAllBytes;
    const int64_t from = all ? 0 : k0, to = all ? K : k0 + k_len;
    auto* parts = reinterpret_cast<uint16_t*>(split.scratch.reserve(padded * ceil_div(to - from, kDepth) * kDepth / 2));
    if (split.stamp != stamp || split.row != block.m0 || split.k != from)
      for (int64_t k = from; k < to; k += block_k)
        split_rows<P>(x + block.m0 * K + k, rows, filled, std::min(block_k, to - k), K, parts + padded * (k - from));
    split.stamp = stamp;
    split.row = block.m0;
    split.k = from;
    return parts + padded * (k0 - from);
  }

  // NOTE: a load waits for a store of a moment ago to an address that is the same modulo 4096. Parts are stored this
  // far from the steps that they are made of, so that the line which is loaded next was stored longest ago: it gains a
  // tenth for few rows.
  static uint16_t* lower_scratch(int64_t numbers, const uint16_t* panel) {
    constexpr uintptr_t kPage = 4096, kApart = 2 * kTileBytes - 64;
    auto* scratch = reinterpret_cast<char*>(panel_scratch().reserve(numbers / 2 + int64_t(kPage) / 4));
    return reinterpret_cast<uint16_t*>(scratch + (uintptr_t(panel) + kApart - uintptr_t(scratch)) % kPage);
  }

  // Steps of a panel, or of two: where its planes are, numbers from one plane to the other, and to the next panel.
  struct Panels {
    const uint16_t* start;
    int64_t apart, next;
  };

  template <class T>
  Panels panels_of(int64_t n, int count, int64_t k0, int64_t steps) const {
    if constexpr (std::is_same_v<T, Widened>) {
      const int64_t plane = steps * kStepNumbers;
      auto* wide = reinterpret_cast<uint16_t*>(thread_scratch().reserve(2 * plane));
      for (int i = 0; i < count; ++i) widen(weight, K, n + i * kPanel, k0, steps, wide + i * 2 * plane, plane);
      return {wide, plane, 2 * plane};
    } else {
      const int64_t numbers = TiledWeight<T>::panel_numbers(K);
      const auto* panel = static_cast<const uint16_t*>(weight) + n / kPanel * numbers;
      return {panel + k0 / kDepth * kStepNumbers, TiledWeight<T>::plane_numbers(K), numbers};
    }
  }

  template <class T, int P>
  void multiply(const Block& block, const uint16_t* rows, int64_t k0, int64_t k_len) const {
    const int64_t steps = ceil_div(k_len, kDepth), tile_row = steps * P * kTile;
    const bool in_turns = block.m1 - block.m0 <= kBlockRows;
    const int64_t kept = sizeof(T) == 2 || P == 1 ? 0 : in_turns ? 2 * width : steps;
    const Epilogue whole{y, bias, residual, N, activation}, partial{y, nullptr, nullptr, N, kNone};
    alignas(64) float sums[2][kBlockRows * kPanel];
    Pending pending{k0 + k_len == K ? whole : partial, k0 == 0};
    for (int64_t n = block.n0, next, turn = 0; n < block.n1; n = next) {
      const bool paired = width == 2 && n + kPanel < block.n1;
      const auto [panel, apart, after] = panels_of<T>(n, paired ? 2 : 1, k0, steps);
      uint16_t* parts = lower_scratch(kept * kLowerNumbers, panel);
      next = n + (paired ? 2 : 1) * kPanel;
      for (int64_t m = block.m0; m < block.m1; m += kBlockRows, turn ^= 1) {
        const int some = int(ceil_div(pending.rows(), steps)), now = int(std::min(kBlockRows, block.m1 - m));
        const auto meanwhile = [&] { pending.advance(some); };
        const uint16_t* a = rows + (m - block.m0) / kTileRows * tile_row;
        const Lower lower{parts, apart, m == block.m0, in_turns};
        float* c = sums[turn];
        if (paired) multiply_pair<T, P>(steps, a, panel, after, apart, parts, c, meanwhile);
        else if (now > kTileRows) multiply_tiles<2, T, P>(steps, a, 2 * tile_row, panel, lower, c, meanwhile);
        else multiply_tiles<1, T, P>(steps, a, 2 * tile_row, panel, lower, c, meanwhile);
        pending.sums[0] = {c, m, n, now};
        if (paired) pending.sums[1] = {c + kTileRows * kPanel, m, n + kPanel, now};
      }
    }
    pending.advance(2 * kBlockRows);
  }
};

}  // namespace
