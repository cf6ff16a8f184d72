// y = activation(x w^T + bias) + residual, on weights packed once at load.
//
// A packed weight is panels of kPanel columns, [ceil(N / kPanel)][K][kPanel]; of x an element at a time is broadcast. A
// sum runs over k ascending in blocks whose size depends on K alone, and the blocks' sums are added in order, so a row's
// bits depend on nothing else. Weights that are bf16 without loss are kept so, and widened panel by panel: the bits are
// the same, at half the memory.
//
// Where one bf16 part of each number is multiplied, x is rounded too, and both are taken in pairs (pairs.h).
#pragma once
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "epilogue.h"
#include "pairs.h"
#include "scratch.h"

namespace {

// One step of k: R rows by V vectors. `a` holds a pointer to each third row: three rows share an address register.
template <int V, class T, size_t... I>
inline __attribute__((always_inline)) void step(Vec* c, const float* const* a, int64_t lda, int64_t k, const T* b,
                                                std::index_sequence<I...>) {
  Vec column[V];
  for (int v = 0; v < V; ++v) column[v] = load_lanes(b + v * kWidth, kWidth);
  // NOTE: constant indices from a fold; with a loop GCC 12 keeps c in memory, at a third of the speed.
  ((c[I] = add_product<T>(c[I], a[I / V / 3][int64_t(I / V % 3) * lda + k], column[I % V])), ...);
}

template <int V, size_t... I>
inline __attribute__((always_inline)) void add_tile(Vec* sums, const float* c, int64_t ldc, std::index_sequence<I...>) {
  ((sums[I] += load(c + int64_t(I / V) * ldc + I % V * kWidth)), ...);
}

template <int V, size_t... I>
inline __attribute__((always_inline)) void store_tile(const Vec* sums, float* c, int64_t ldc,
                                                      std::index_sequence<I...>) {
  (store(c + int64_t(I / V) * ldc + I % V * kWidth, sums[I]), ...);
}

// Of the data cache next to a core; 0 where the system does not say.
inline long level_one_bytes() {
#if defined(_SC_LEVEL1_DCACHE_SIZE)
  return sysconf(_SC_LEVEL1_DCACHE_SIZE);
#else
  return 0;
#endif
}

// How far ahead a panel's numbers are fetched: into L1, and into L2; and what else is fetched beside them.
struct Ahead {
  static constexpr int64_t kNear = 320, kFar = 3072;
  static constexpr int64_t kLines = kPanel / 4;              // what four steps read of a panel's fp32 numbers
  static constexpr int64_t kSharing = kPanel == 16 ? 4 : 1;  // tiles that share a panel; other panels were not measured

  int64_t into_l1 = kNear, into_l2 = 0;
  int64_t lines = 0;  // that go into L2 in four steps
  Awaited awaited{};

  // Of tile i of `tiles`, each of which reads a panel's `length` numbers. The last few fetch what the next panel's first
  // would wait for, `next` numbers on (0: nobody knows where).
  static Ahead of(int64_t i, int64_t tiles, int64_t length, int64_t next, bool is_first) {
    if (i == 0 && (is_first || tiles == 1 || next == 0 || kSharing == 1)) return unannounced();
    const int64_t sharing = std::min(tiles, kSharing), share = i - (tiles - sharing);
    if (share < 0 || next == 0) return {};
    const int64_t begin = kLines * share / sharing, end = kLines * (share + 1) / sharing;
    return {kNear, next + length / kLines * begin, end - begin, {}};
  }

  // Calls f with `lines` as a constant: in a loop that counts them a product takes 1.07 of the time.
  template <class F>
  void with_lines(F&& f) const {
    if (lines == 0) return f(std::integral_constant<int64_t, 0>{});
    if constexpr (kSharing > 1) {
      if (lines == 1) return f(std::integral_constant<int64_t, 1>{});
      if (lines == 2) return f(std::integral_constant<int64_t, 2>{});
    }
    f(std::integral_constant<int64_t, kLines>{});
  }

 private:
  // A tile whose panel nobody fetched waits for memory, of which an L1 of 48 KB (Zen 5) takes in lines fast enough; one of
  // 32 KB (Zen 3 and 4) has too few places for them: they go into L2, and from there into L1.
  static Ahead unannounced() {
    static const bool large_l1 = level_one_bytes() >= 48 << 10;
    return large_l1 ? Ahead{kFar, 0, 0, {}} : Ahead{kNear, kFar, kLines, {}};
  }
};

// Asks for so many times sixteen numbers (of fp32: lines), or groups of kGroup, into L2.
template <int64_t kLines, int kGroup = 1, class T>
inline __attribute__((always_inline)) void fetch_lines(const T* from) {
  for (int64_t i = 0; i < kLines; ++i) __builtin_prefetch(from + 16 * kGroup * i, 0, 2);
}

// sums[R, V * kWidth] = a[R, K] @ b[K, kPanel][:, : V * kWidth], b fp32 or bf16; or of pairs both, K of them
template <int R, int V, int64_t kLines, class T>
inline __attribute__((always_inline)) void add_products(Vec* sums, int64_t K, const float* a, int64_t lda, const T* b,
                                                        Ahead ahead) {
  constexpr auto each = std::make_index_sequence<size_t(R * V)>{};
  const float* const rows[4] = {a, a + 3 * lda, a + 6 * lda, a + 9 * lda};
  int64_t k = 0;
  for (const T* far = b + ahead.into_l2; k + 4 <= K; k += 4, b += 4 * kPanel, far += 16 * kLines) {
    ahead.awaited.fetch_row();
    for (int i = 0; i < 4 * kPanel; i += 16) __builtin_prefetch(b + ahead.into_l1 + i);
    fetch_lines<kLines>(far);
    step<V>(sums, rows, lda, k, b, each);
    step<V>(sums, rows, lda, k + 1, b + kPanel, each);
    step<V>(sums, rows, lda, k + 2, b + 2 * kPanel, each);
    step<V>(sums, rows, lda, k + 3, b + 3 * kPanel, each);
  }
  for (; k < K; ++k, b += kPanel) step<V>(sums, rows, lda, k, b, each);
}

// c (+)= the same
template <int R, int V, int64_t kLines, class T>
inline void fetching_tile(int64_t K, const float* a, int64_t lda, const T* b, float* c, int64_t ldc, bool accumulate,
                          Ahead ahead) {
  constexpr auto each = std::make_index_sequence<size_t(R * V)>{};
  Vec sums[R * V] = {};
  add_products<R, V, kLines>(sums, K, a, lda, b, ahead);
  if (accumulate) add_tile<V>(sums, c, ldc, each);
  store_tile<V>(sums, c, ldc, each);
}

template <int R, int V, class T>
void tile(int64_t K, const float* a, int64_t lda, const T* b, float* c, int64_t ldc, bool accumulate, Ahead ahead) {
  ahead.with_lines([&](auto lines) { fetching_tile<R, V, lines()>(K, a, lda, b, c, ldc, accumulate, ahead); });
}

template <class T>
using Tile = void (*)(int64_t, const float*, int64_t, const T*, float*, int64_t, bool, Ahead);

template <int V, class T, size_t... R>
constexpr Tile<T> tile_of(int rows, std::index_sequence<R...>) {
  constexpr Tile<T> tiles[] = {tile<int(R) + 1, V, T>...};
  return tiles[rows - 1];
}

// c[rows, cols] (+)= a[rows, K] @ one panel, rows <= kRows, cols <= kPanel
template <class T>
inline void multiply(int rows, int64_t cols, int64_t K, const float* a, int64_t lda, const T* b, float* c, int64_t ldc,
                     bool accumulate, Ahead ahead = {}) {
  constexpr auto heights = std::make_index_sequence<size_t(kRows)>{};
  if (cols == kPanel) return tile_of<2, T>(rows, heights)(K, a, lda, b, c, ldc, accumulate, ahead);
  if (cols == kWidth) return tile_of<1, T>(rows, heights)(K, a, lda, b, c, ldc, accumulate, ahead);
  float edge[kRows * kPanel];
  for (int r = 0; r < rows; ++r) std::memcpy(edge + r * kPanel, c + r * ldc, size_t(cols) * 4);
  tile_of<2, T>(rows, heights)(K, a, lda, b, edge, kPanel, accumulate, ahead);
  for (int r = 0; r < rows; ++r) std::memcpy(c + r * ldc, edge + r * kPanel, size_t(cols) * 4);
}

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Whether bf16 holds all of these numbers.
inline bool is_bf16(const float* x, int64_t n) {
  constexpr int64_t kBlock = 1024;
  for (int64_t start = 0; start < n; start += kBlock) {
    uint32_t seen = 0, bits;
    for (int64_t i = start; i < std::min(n, start + kBlock); ++i) {
      std::memcpy(&bits, x + i, sizeof bits);
      seen |= bits;
    }
    if (seen & 0xFFFFu) return false;
  }
  return true;
}

inline void narrow(float x, uint16_t* y) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  *y = uint16_t(bits >> 16);
}
inline void narrow(float x, float* y) { *y = x; }

// w [N, K] -> panels of numbers, or of pairs (kTogether 2; of bf16 numbers): [ceil(N / kPanel)][ceil(K / kTogether)]
// [kPanel][kTogether]. What is missing of the last panel, or pair, is zero.
//
// NOTE: a line of a column at a time: columns whole pages apart fall into one cache set, and would drive each other out.
template <int kTogether, class T>
inline void pack_together(const float* w, int64_t N, int64_t K, T* packed) {
  constexpr int64_t kLine = 16;
  const int64_t depth = ceil_div(K, kTogether);
  for (int64_t n = 0; n < N; n += kPanel, packed += depth * kPanel * kTogether)
    for (int64_t start = 0; start < depth * kTogether; start += kLine)
      for (int64_t j = 0; j < kPanel; ++j)
        for (int64_t k = start; k < std::min(start + kLine, depth * kTogether); ++k)
          narrow(n + j < N && k < K ? w[(n + j) * K + k] : 0.0f,
                 packed + (k / kTogether * kPanel + j) * kTogether + k % kTogether);
}

template <class T>
inline void pack_weight(const float* w, int64_t N, int64_t K, T* packed) {
  pack_together<1>(w, N, K, packed);
}

// The order of a task's panels where columns have two halves, gates and what they gate: in turns, so that the gates are
// still in its cache; but few rows read each half from end to end.
struct PanelOrder {
  int64_t panels, halves;  // panels of a half
  bool in_turns;

  int64_t count() const { return panels * halves; }
  int64_t within_half(int64_t i) const { return in_turns ? i / halves : i % panels; }
  int64_t half(int64_t i) const { return in_turns ? i % halves : i / panels; }
};

// How a product of M x N x K is cut, in blocks of rows, of panels and of K; a task is a block of rows and one of panels,
// of each half of the columns.
struct Blocks {
  int64_t rows = 0, panels = 0, k = 0, row_blocks = 0, panel_blocks = 0;
  int64_t halves = 1, half = 0;  // columns of a half

  struct Part {
    int64_t m0, m1, n0, n1;  // columns of the first half
  };

  // A block of K holds whole units -> the number of tasks.
  int64_t plan(int64_t M, int64_t N, int64_t K, int64_t unit, int threads, int num_halves) {
    halves = num_halves;
    half = N / halves;
    const int64_t all_panels = ceil_div(half, kPanel);
    row_blocks = ceil_div(M, kMaxRows);
    rows = ceil_div(ceil_div(M, row_blocks), kRows) * kRows;
    row_blocks = ceil_div(M, rows);
    panel_blocks = ceil_div(N, kMaxColumns);
    if (threads > 1) panel_blocks = std::max(panel_blocks, std::min(all_panels, ceil_div(6 * threads, row_blocks)));
    panels = ceil_div(all_panels, panel_blocks);
    panel_blocks = ceil_div(all_panels, panels);
    k = ceil_div(ceil_div(K, ceil_div(K, kMaxK)), unit) * unit;
    return row_blocks * panel_blocks;
  }

  Part part(int64_t task, int64_t M) const {
    const int64_t m0 = task / panel_blocks * rows, n0 = task % panel_blocks * panels * kPanel;
    return {m0, std::min(M, m0 + rows), n0, std::min(half, n0 + panels * kPanel)};
  }

  static bool has_few_rows(const Part& part) { return part.m1 - part.m0 <= 2 * kRows; }

  int64_t num_panels(const Part& part) const { return order(part).count(); }

  // Where a part's panel begins, and how many columns it has.
  int64_t column(const Part& part, int64_t panel) const {
    return part.n0 + order(part).within_half(panel) * kPanel + order(part).half(panel) * half;
  }
  int64_t width(const Part& part, int64_t panel) const {
    return std::min<int64_t>(kPanel, part.n1 - part.n0 - order(part).within_half(panel) * kPanel);
  }

 private:
  // Bytes: a block of x (or of sums) stays in L2, which targets without AVX-512 have less of; a panel of the weight in L1.
  static constexpr int64_t kMaxRows = kWidth == 16 ? 192 : 96, kMaxColumns = 512, kMaxK = 384;

  PanelOrder order(const Part& part) const {
    return {ceil_div(part.n1 - part.n0, kPanel), halves, !has_few_rows(part)};
  }
};

// A task's sums over blocks of K, panel by panel, a tile's rows side by side: the rows of y may be whole pages apart, and
// would all fall into the same cache sets. With one block of K each tile is finished at once, in the place of the last.
struct Sums {
  float* data;
  int64_t rows;  // of a panel; 0: one block of K

  static Sums of(const Blocks::Part& part, int64_t num_panels, bool one_block) {
    if (one_block) return {thread_scratch().reserve(kRows * kPanel), 0};
    const int64_t rows = part.m1 - part.m0;
    return {thread_scratch().reserve(rows * num_panels * kPanel), rows};
  }
  float* tile(int64_t row, int64_t panel) const { return rows == 0 ? data : data + (panel * rows + row) * kPanel; }
};

// A task's work on one block of K.
struct Step {
  Blocks::Part part;
  Rows x;
  Sums sums;
  int64_t k0, k_len;
  bool is_first = false;  // nothing was read before that could have fetched its panel
};

// A product, as an epilogue reads it.
struct Computed {
  const float* c;

  Vec operator()(int64_t row, int64_t column, int64_t lanes) const {
    return load_lanes(c + row * kPanel + column, lanes);
  }
};

struct LinearVectors {
  float* y;
  const float* x;
  const void* weight;  // fp32, bf16 or pairs
  const float *bias, *residual;
  int64_t M, N, K;
  int activation;
  bool weight_is_bf16;
  int bf16_parts = 3;  // of each number that are multiplied: 3 make fp32; of 1 pairs are, where there are some
  Blocks blocks{};
  int64_t stamp = 0;

  int64_t plan(int threads) {
    stamp = next_stamp();
    return blocks.plan(M, N, depth(), 4, threads, num_halves(activation));
  }

  // Few rows read a panel from end to end; many, a block of K of all panels.
  void run(int64_t task) const {
    const Blocks::Part part = blocks.part(task, M);
    const int64_t all = depth(), panels = blocks.num_panels(part);
    const Rows rows = factor_rows(x, K, part.m0, part.m1, stamp, bf16_parts);
    const Sums sums = Sums::of(part, panels, blocks.k >= all);
    const auto run_step = [&](int64_t i, int64_t k0, bool is_first) {
      panel({part, rows, sums, k0, std::min(blocks.k, all - k0), is_first}, i);
    };
    if (Blocks::has_few_rows(part)) {
      for (int64_t i = 0; i < panels; ++i)
        for (int64_t k0 = 0; k0 < all; k0 += blocks.k) run_step(i, k0, i + k0 == 0);
    } else {
      for (int64_t k0 = 0; k0 < all; k0 += blocks.k)
        for (int64_t i = 0; i < panels; ++i) run_step(i, k0, i == 0);
    }
  }

 private:
  int64_t depth() const { return in_pairs(bf16_parts) ? pairs_in(K) : K; }  // steps along k

  // Numbers from what a step reads of a weight, of a part's panel, to what the next one does.
  int64_t to_next(const Step& step, int64_t number) const {
    const int64_t panels = blocks.column(step.part, number + 1) - blocks.column(step.part, number);
    if (!Blocks::has_few_rows(step.part)) return panels * depth();
    return step.k0 + step.k_len == depth() ? panels * depth() - step.k0 * kPanel : step.k_len * kPanel;
  }

  // A bf16 panel that many tiles read is widened once.
  void panel(const Step& step, int64_t number) const {
    const int64_t start = blocks.column(step.part, number) * depth() + step.k0 * kPanel, next = to_next(step, number);
    if (in_pairs(bf16_parts)) return panel(static_cast<const Pair*>(weight) + start, next, step, number);
    if (!weight_is_bf16) return panel(static_cast<const float*>(weight) + start, next, step, number);
    const uint16_t* narrow = static_cast<const uint16_t*>(weight) + start;
    if (Blocks::has_few_rows(step.part)) return panel(narrow, next, step, number);
    const int64_t length = step.k_len * kPanel;
    float* wide = panel_scratch().reserve(length);
    for (int64_t i = 0; i < length; i += kWidth) store(wide + i, load_lanes(narrow + i, kWidth));
    panel(wide, 0, step, number);
  }

  template <class T>
  void panel(const T* w, int64_t next, const Step& step, int64_t number) const {
    const int64_t m0 = step.part.m0, m1 = step.part.m1, n = blocks.column(step.part, number);
    const int64_t tiles = ceil_div(m1 - m0, kRows), cols = blocks.width(step.part, number);
    const int64_t computed = cols > kWidth ? kPanel : kWidth;
    const bool is_last = step.k0 + step.k_len == depth();
    const Epilogue epilogue{y, bias, residual, N, activation};
    for (int64_t i = 0, m = m0; i < tiles; ++i) {
      const int rows = int(ceil_div(m1 - m, tiles - i));
      float* c = step.sums.tile(m - m0, number);
      const float* a = step.x.at(m - m0, step.k0);
      Ahead ahead = Ahead::of(i, tiles, step.k_len * kPanel, next, step.is_first);
      if (is_last) ahead.awaited = epilogue.awaited(rows, m, n);
      multiply(rows, computed, step.k_len, a, step.x.stride, w, c, kPanel, step.k0 > 0, ahead);
      // NOTE: a pass over the tile while it is in L1, not inside `tile`: one code for tiles of every height, so that a
      // row's bits cannot depend on how the compiler contracted each of them. It costs under 1 %.
      if (is_last) epilogue.finish(Computed{c}, rows, cols, m, n);
      m += rows;
    }
  }
};

}  // namespace
