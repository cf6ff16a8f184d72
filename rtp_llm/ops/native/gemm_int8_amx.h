// Products of quantised rows and an int8 panel on AMX tiles: u8 x s8, each sum of four added to 32 bits whole.
#pragma once
#include "int8.h"
#include "tiles.h"

namespace {

template <int R>
inline void add_int8_products() {
  _tile_dpbusd(0, 4, 6);
  _tile_dpbusd(1, 4, 7);
  if constexpr (R == 2) {
    _tile_dpbusd(2, 5, 6);
    _tile_dpbusd(3, 5, 7);
  }
}

// sums[rows][kPanel] = x[rows, K] @ one panel; the tiles are shaped for so many rows. R: row tiles.
template <int R>
inline void dot_tiles(int64_t K, const Quantized* x, int64_t stride, const int8_t* w, int32_t* sums) {
  constexpr int64_t kGroups = kPanel * kGroup;
  finish_stores();
  zero_sums<R>();
  for (int64_t k = 0; k < K; k += kPaddedGroups * kGroup, w += kPaddedGroups * kGroups) {
    load_rows<R>(x + k, stride, kTileRows * stride);
    load_columns(w, kGroups, kTileLine);
    add_int8_products<R>();
  }
  store_sums<R>(sums, kPanel * 4);
  finish_stores();
}

}  // namespace
