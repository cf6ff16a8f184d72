// AMX's tiles in plain C++, included before the kernels (g++ -include): these then run on a CPU without any, and a
// sanitizer sees what each instruction reads and writes. Shapes for which the hardware would fault end the process.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace amx_in_software {

struct Tile {
  int rows = 0, row_bytes = 0;
  alignas(64) uint8_t data[16][64] = {};
};

inline thread_local Tile tiles[8];
inline thread_local bool is_shaped = false;

inline Tile& tile(int number) {
  if (!is_shaped || tiles[number].rows == 0) {
    std::fprintf(stderr, "tile %d is used without a shape\n", number);
    std::abort();
  }
  return tiles[number];
}

// As _tile_loadconfig's operand lies in memory.
struct Shapes {
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
};

inline void load_shapes(const void* memory) {
  Shapes shapes;
  std::memcpy(&shapes, memory, sizeof shapes);
  if (shapes.palette != 1 || shapes.start_row != 0) std::abort();
  for (int i = 0; i < 8; ++i) {
    if (shapes.rows[i] > 16 || shapes.row_bytes[i] > 64) std::abort();
    tiles[i] = Tile{};
    tiles[i].rows = shapes.rows[i];
    tiles[i].row_bytes = shapes.row_bytes[i];
  }
  is_shaped = true;
}

inline void release() { is_shaped = false; }

inline void zero(int to) { std::memset(tile(to).data, 0, sizeof tiles[to].data); }

inline void load(int to, const void* memory, int64_t stride) {
  zero(to);
  Tile& x = tile(to);
  for (int row = 0; row < x.rows; ++row)
    std::memcpy(x.data[row], static_cast<const char*>(memory) + row * stride, size_t(x.row_bytes));
}

inline void store(int from, void* memory, int64_t stride) {
  const Tile& x = tile(from);
  for (int row = 0; row < x.rows; ++row)
    std::memcpy(static_cast<char*>(memory) + row * stride, x.data[row], size_t(x.row_bytes));
}

inline void check_shapes(const Tile& sums, const Tile& a, const Tile& b) {
  if (sums.rows == a.rows && sums.row_bytes == b.row_bytes && 4 * b.rows == a.row_bytes) return;
  std::fprintf(stderr, "shapes that do not multiply: %d x %d by %d x %d to %d x %d\n", a.rows, a.row_bytes, b.rows,
               b.row_bytes, sums.rows, sums.row_bytes);
  std::abort();
}

// Denormal numbers count as zero, and rounding is to nearest, whatever the thread has set.
class OwnRounding {
 public:
  OwnRounding() { _mm_setcsr(0x9FC0); }
  ~OwnRounding() { _mm_setcsr(before_); }

 private:
  const unsigned before_ = _mm_getcsr();
};

inline void add_bf16_products(int to, int left, int right) {
  Tile& sums = tile(to);
  const Tile &a = tile(left), &b = tile(right);
  check_shapes(sums, a, b);
  const OwnRounding rounding;
  const __m512i upper = _mm512_set1_epi32(int(0xFFFF0000));
  for (int row = 0; row < sums.rows; ++row) {
    __m512 even = _mm512_setzero_ps(), odd = even;
    for (int k = 0; k < b.rows; ++k) {
      uint32_t pair;
      std::memcpy(&pair, a.data[row] + 4 * k, 4);
      const __m512i x = _mm512_set1_epi32(int(pair)), w = _mm512_load_si512(b.data[k]);
      even = _mm512_fmadd_ps(__m512(_mm512_slli_epi32(x, 16)), __m512(_mm512_slli_epi32(w, 16)), even);
      odd = _mm512_fmadd_ps(__m512(_mm512_and_si512(x, upper)), __m512(_mm512_and_si512(w, upper)), odd);
    }
    _mm512_store_ps(sums.data[row], _mm512_add_ps(_mm512_load_ps(sums.data[row]), _mm512_add_ps(even, odd)));
  }
}

inline void add_int8_products(int to, int left, int right) {
  Tile& sums = tile(to);
  const Tile &a = tile(left), &b = tile(right);
  check_shapes(sums, a, b);
  for (int row = 0; row < sums.rows; ++row) {
    __m512i sum = _mm512_load_si512(sums.data[row]);
    for (int k = 0; k < b.rows; ++k) {
      int32_t four;
      std::memcpy(&four, a.data[row] + 4 * k, 4);
      sum = _mm512_dpbusd_epi32(sum, _mm512_set1_epi32(four), _mm512_load_si512(b.data[k]));
    }
    _mm512_store_si512(sums.data[row], sum);
  }
}

}  // namespace amx_in_software

#undef _tile_loadd
#undef _tile_stored
#undef _tile_zero
#undef _tile_dpbf16ps
#undef _tile_dpbusd
#define _tile_loadconfig amx_in_software::load_shapes
#define _tile_release amx_in_software::release
#define _tile_zero amx_in_software::zero
#define _tile_loadd amx_in_software::load
#define _tile_stored amx_in_software::store
#define _tile_dpbf16ps amx_in_software::add_bf16_products
#define _tile_dpbusd amx_in_software::add_int8_products
#define __AMX_TILE__ 1
#define __AMX_BF16__ 1
#define __AMX_INT8__ 1
