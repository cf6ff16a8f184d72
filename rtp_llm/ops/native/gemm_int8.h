// y = activation(x w^T + bias) + residual, on quantised rows and an int8 weight.
//
// The products are summed as integers, so their order is free; what follows is in fp32, by one code for all tiles. With
// q of a row and w of a column, sum((q - zero) w) = sum(q w) - zero sum(w), where sum(w) was computed at load; and the
// row's one number that may lie outside [0, 255] adds its excess times its w.
#pragma once
#include "int8.h"
#if defined(__AMX_INT8__)
#include "gemm_int8_amx.h"
#endif

namespace {

#if defined(__AMX_INT8__)
constexpr int kRowsInt8 = 2 * kTileRows;
#else
constexpr int kRowsInt8 = kRows;
struct Tiles {};
#endif

template <int V, size_t... I>
inline __attribute__((always_inline)) void dot_step(VecInt* sums, const Quantized* const* x, int64_t stride, int64_t k,
                                                    const int8_t* w, std::index_sequence<I...>) {
  VecInt column[V];
  for (int v = 0; v < V; ++v) column[v] = columns_of(w + v * kWidth * kGroup);
  ((sums[I] = dot(sums[I], group_of(x[I / V / 3] + int64_t(I / V % 3) * stride + k), column[I % V])), ...);
}

template <size_t... I>
inline __attribute__((always_inline)) void store_sums(const VecInt* sums, int32_t* c, int V, std::index_sequence<I...>) {
  ((store(c + int64_t(I) / V * kPanel + int64_t(I) % V * kWidth, sums[I])), ...);
}

// sums[R][kPanel][: V * kWidth] = x[R, K] @ one panel; `stride` counts numbers
template <int R, int V, int64_t kLines>
inline void fetching_dot_tile(int64_t K, const Quantized* x, int64_t stride, const int8_t* w, int32_t* c, Ahead ahead) {
  constexpr auto each = std::make_index_sequence<size_t(R * V)>{};
  constexpr int64_t kStep = kPanel * kGroup;
  const Quantized* const rows[4] = {x, x + 3 * stride, x + 6 * stride, x + 9 * stride};
  VecInt sums[R * V] = {};
  int64_t k = 0;
  for (const int8_t* far = w + ahead.into_l2 * kGroup; k + 4 * kGroup <= K; k += 4 * kGroup, w += 4 * kStep) {
    ahead.awaited.fetch_row();
    for (int i = 0; i < 4 * kStep; i += 64) __builtin_prefetch(w + ahead.into_l1 * kGroup + i);
    fetch_lines<kLines, kGroup>(far);
    far += 16 * kLines * kGroup;
    dot_step<V>(sums, rows, stride, k, w, each);
    dot_step<V>(sums, rows, stride, k + kGroup, w + kStep, each);
    dot_step<V>(sums, rows, stride, k + 2 * kGroup, w + 2 * kStep, each);
    dot_step<V>(sums, rows, stride, k + 3 * kGroup, w + 3 * kStep, each);
  }
  for (; k < K; k += kGroup, w += kStep) dot_step<V>(sums, rows, stride, k, w, each);
  store_sums(sums, c, V, each);
}

template <int R, int V>
void dot_tile(int64_t K, const Quantized* x, int64_t stride, const int8_t* w, int32_t* c, Ahead ahead) {
  ahead.with_lines([&](auto lines) { fetching_dot_tile<R, V, lines()>(K, x, stride, w, c, ahead); });
}

using DotTile = void (*)(int64_t, const Quantized*, int64_t, const int8_t*, int32_t*, Ahead);

template <int V, size_t... R>
constexpr DotTile dot_tile_of(int rows, std::index_sequence<R...>) {
  constexpr DotTile tiles[] = {dot_tile<int(R) + 1, V>...};
  return tiles[rows - 1];
}

struct LinearInt8 {
  float* y;
  const void *x, *weight;  // as `Quantize` and `Int8Weight` leave them
  const float *bias, *residual;
  int64_t M, N, K;
  int activation;
  // The plan: blocks of rows and of panels.
  int64_t block_rows = 0, block_panels = 0, row_blocks = 0, panel_blocks = 0;

  int64_t plan(int threads) {
    const int64_t panels = panels_of_half(), stride = quantized_row_bytes(K);
    const int64_t max_rows = std::clamp(kMaxBytes / stride / kRowsInt8, int64_t(4), int64_t(32)) * kRowsInt8;
    row_blocks = ceil_div(M, max_rows);
    block_rows = ceil_div(ceil_div(M, row_blocks), kRowsInt8) * kRowsInt8;
    row_blocks = ceil_div(M, block_rows);
    panel_blocks = threads > 1 ? std::min(panels, ceil_div(6 * threads, row_blocks)) : 1;
    block_panels = ceil_div(panels, panel_blocks);
    panel_blocks = ceil_div(panels, block_panels);
    return row_blocks * panel_blocks;
  }

  void run(int64_t task) const {
    Tiles tiles;
    const int64_t m0 = task / panel_blocks * block_rows, p0 = task % panel_blocks * block_panels;
    const int64_t m1 = std::min(M, m0 + block_rows), p1 = std::min(panels_of_half(), p0 + block_panels);
    const PanelOrder order{p1 - p0, num_halves(activation), m1 - m0 > 2 * kRowsInt8};
    const auto panel = [&](int64_t i) { return p0 + order.within_half(i) + order.half(i) * panels_of_half(); };
    for (int64_t i = 0; i < order.count(); ++i) run_panel(tiles, m0, m1, panel(i), panel(i + 1) - panel(i), i == 0);
  }

 private:
  static constexpr int64_t kMaxBytes = 256 << 10;  // a block of x stays in L2

  int64_t panels_of_half() const { return ceil_div(N / num_halves(activation), kPanel); }

  struct Dequantized {
    const int32_t* sums;  // [rows][kPanel]
    const char* rows;
    int64_t stride;
    const float* column_scales;
    const int32_t* column_sums;
    const int8_t* panel;

    Vec operator()(int64_t row, int64_t column, int64_t) const {
      RowHead head;
      std::memcpy(&head, rows + row * stride, sizeof head);
      VecInt exact = load(sums + row * kPanel + column) - head.zero * load(column_sums + column);
      const int8_t* group = panel + (head.place / kGroup * kPanel + column) * kGroup;
      if (head.excess != 0) exact += head.excess * number_of(columns_of(group), head.place % kGroup);
      return __builtin_convertvector(exact, Vec) * (head.scale * load(column_scales + column));
    }
  };

  // The next one is `next` panels on.
  void run_panel(Tiles& tiles, int64_t m0, int64_t m1, int64_t panel, int64_t next, bool is_first) const {
    const Int8Weight packed{N, K};
    void* memory = const_cast<void*>(weight);
    const int8_t* w = packed.panels(memory) + panel * packed.panel_bytes();
    const int64_t n = panel * kPanel, cols = std::min<int64_t>(kPanel, N - n), stride = quantized_row_bytes(K);
    const Epilogue epilogue{y, bias, residual, N, activation};
    const int64_t blocks = ceil_div(m1 - m0, kRowsInt8);
    alignas(64) int32_t sums[kRowsInt8 * kPanel];
    for (int64_t i = 0, m = m0; i < blocks; ++i) {
      const int rows = int(ceil_div(m1 - m, blocks - i));
      const char* x_rows = static_cast<const char*>(x) + m * stride;
      const int64_t numbers = packed.panel_bytes() / kGroup;
      Ahead ahead = Ahead::of(i, blocks, numbers, next * numbers, is_first);
      ahead.awaited = epilogue.awaited(rows, m, n);
      multiply(tiles, rows, cols, x_rows, stride, w, sums, ahead);
      const Dequantized product{sums, x_rows, stride, packed.scales(memory) + n, packed.sums(memory) + n, w};
      epilogue.finish(product, rows, cols, m, n);
      m += rows;
    }
  }

#if defined(__AMX_INT8__)
  void multiply(Tiles& tiles, int rows, int64_t, const char* x_rows, int64_t stride, const int8_t* w, int32_t* sums,
                Ahead ahead) const {
    ahead.awaited.read.rows = 0;  // y alone, as ever: what more it could ask for at once was not measured on AMX
    ahead.awaited.fetch();
    tiles.shape(rows);
    const auto* numbers = reinterpret_cast<const Quantized*>(x_rows + sizeof(RowHead));
    if (rows > kTileRows) dot_tiles<2>(K, numbers, stride, w, sums);
    else dot_tiles<1>(K, numbers, stride, w, sums);
  }
#else
  void multiply(Tiles&, int rows, int64_t cols, const char* x_rows, int64_t stride, const int8_t* w, int32_t* sums,
                Ahead ahead) const {
    constexpr auto heights = std::make_index_sequence<size_t(kRows)>{};
    const auto* numbers = reinterpret_cast<const Quantized*>(x_rows + sizeof(RowHead));
    const DotTile tile = cols > kWidth ? dot_tile_of<2>(rows, heights) : dot_tile_of<1>(rows, heights);
    tile(K, numbers, stride / int64_t(sizeof(Quantized)), w, sums, ahead);
  }
#endif
};

}  // namespace
