// AMX: eight tile registers of 16 rows of 64 bytes, and products of whole tiles.
//
// Tiles 0 to 3 are sums, [2 row tiles][2 column tiles]; 4 and 5 hold rows, 6 and 7 columns.
#pragma once
#include "gemm.h"

namespace {

constexpr int kTileRows = 16, kTileBytes = 1024;
constexpr int64_t kTileLine = 64;  // bytes of a row

struct alignas(64) TileShapes {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};
};

// The compiler's tile intrinsics do not say which memory they read.
inline void finish_stores() { asm volatile("" ::: "memory"); }

// The calling thread's tiles, from here to the end of the block. Released, they cost nothing when threads are switched.
class Tiles {
 public:
  // Two row tiles of `rows` rows in all, which the second fills up; or of as many each, where one is enough.
  explicit Tiles(int rows = 2 * kTileRows) { shape(rows); }
  ~Tiles() { _tile_release(); }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;

  // What the tiles hold is lost.
  void shape(int rows) {
    if (rows == rows_) return;
    rows_ = rows;
    const int first = std::min(rows, kTileRows), second = rows > kTileRows ? rows - kTileRows : rows;
    const int heights[8] = {first, first, second, second, first, second, kTileRows, kTileRows};
    TileShapes shapes;
    for (int i = 0; i < 8; ++i) {
      shapes.row_bytes[i] = kTileLine;
      shapes.rows[i] = uint8_t(heights[i]);
    }
    finish_stores();
    _tile_loadconfig(&shapes);
  }

 private:
  int rows_ = 0;
};

template <int R>
inline void zero_sums() {
  _tile_zero(0);
  _tile_zero(1);
  if constexpr (R == 2) {
    _tile_zero(2);
    _tile_zero(3);
  }
}

// R row tiles of sums to c; `stride` in bytes.
template <int R>
inline void store_sums(void* c, int64_t stride) {
  char* to = static_cast<char*>(c);
  _tile_stored(0, to, stride);
  _tile_stored(1, to + 64, stride);
  if constexpr (R == 2) {
    _tile_stored(2, to + kTileRows * stride, stride);
    _tile_stored(3, to + kTileRows * stride + 64, stride);
  }
}

// Row tiles whose rows are `stride` bytes apart, the second tile `next` bytes after the first.
template <int R>
inline void load_rows(const void* a, int64_t stride, int64_t next) {
  _tile_loadd(4, a, stride);
  if constexpr (R == 2) _tile_loadd(5, static_cast<const char*>(a) + next, stride);
}

inline void load_columns(const void* b, int64_t stride, int64_t next) {
  _tile_loadd(6, b, stride);
  _tile_loadd(7, static_cast<const char*>(b) + next, stride);
}

template <int R>
inline void add_bf16_products() {
  _tile_dpbf16ps(0, 4, 6);
  _tile_dpbf16ps(1, 4, 7);
  if constexpr (R == 2) {
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
}

}  // namespace
