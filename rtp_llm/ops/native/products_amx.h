// Products of split rows and packed panels on AMX tiles, a block of k at a time; gemm_amx.h says of what they are made.
#pragma once
#include <type_traits>
#include <utility>

#include "split.h"
#include "tiles.h"

namespace {

constexpr int64_t kDepth = 32;                                            // of a bf16 tile product, along k
constexpr int64_t kTile = kTileRows * kDepth;                             // numbers of a tile
constexpr int64_t kBlockRows = 2 * kTileRows;                             // rows that are multiplied together
static_assert(kPanel == 2 * kTileRows);

// What a step of a panel takes in either plane of a packed weight, [2 column tiles][tile].
constexpr int64_t kStepNumbers = 2 * kTile;

// The middle and low parts of a step, [2 parts][2 column tiles][tile].
constexpr int64_t kLowerNumbers = 4 * kTile;

// A weight that is widened from 8 or 4 bits: its low parts are zero, and the middle ones stand in its second plane.
struct Widened {
  float number;
};

// How many parts a number of a weight has.
template <class T>
constexpr int kPartsOf = sizeof(T) == 2 ? 1 : std::is_same_v<T, Widened> ? 2 : 3;

// Lines `from` to `to` of the 32 of a packed step, whose lower halves are `apart` numbers behind, into middle parts and,
// of three, low ones.
template <int P>
inline void make_lower_parts(const uint16_t* high, int64_t apart, uint16_t* lower, int from, int to) {
  for (int64_t line = from * kDepth, end = to * kDepth; line < end; line += kDepth) {
    const LowerParts parts = lower_parts(_mm512_load_si512(high + line), _mm512_load_si512(high + apart + line));
    _mm512_store_si512(lower + line, parts.middle);
    if constexpr (P == 3) _mm512_store_si512(lower + 2 * kTile + line, parts.low);
  }
}

// The hardware's prefetch stops at the end of a page, which is two steps: the beginning of a later one is asked for.
// More lines gain where weights come from memory, and cost where they come from L3.
template <class T>
inline void prefetch_step(const uint16_t* high, int64_t apart) {
  constexpr int kSome = 8;
  for (int line = 0; line < kSome; ++line) _mm_prefetch(high + line * kDepth, _MM_HINT_T1);
  if constexpr (sizeof(T) == 4)
    for (int line = 0; line < kSome; ++line) _mm_prefetch(high + apart + line * kDepth, _MM_HINT_T1);
}

// Where a block of k of a panel has its middle and low parts; `fresh` says that they are yet to be made, step by step
// while the step before is multiplied. Where the panel is multiplied once, two steps take turns, and stay in L1.
struct Lower {
  uint16_t* parts;
  int64_t apart;  // of a packed weight's planes
  bool fresh, in_turns;

  uint16_t* of(int64_t step) const { return parts + (in_turns ? step & 1 : step) * kLowerNumbers; }
};

// c[R * 16][32] = a @ b over `steps` of kDepth, of the first P parts of either. a: [2 row tiles, `next` bytes apart]
// [steps][P][tile]; b: the high parts of a packed panel of T. `meanwhile` is called once a step.
//
// The products of the lower parts come first, over all of the block of k, and those of the high parts last: rounding
// to the size of a whole sum happens once in 32 numbers.
template <int R, class T, int P, class F>
inline void multiply_tiles(int64_t steps, const uint16_t* a, int64_t next, const uint16_t* b, const Lower& lower,
                           float* c, F&& meanwhile) {
  constexpr bool kWhole = sizeof(T) == 4 && P > 1, kIsMade = kPartsOf<T> == 2;
  constexpr int kWeightParts = std::min(P, kPartsOf<T>), kLines = 2 * kTileRows, kSome = 7;
  const bool fresh = kWhole && !kIsMade && lower.fresh;
  if (fresh) make_lower_parts<kWeightParts>(b, lower.apart, lower.of(0), 0, kLines);
  finish_stores();
  zero_sums<R>();
  for (int64_t step = 0; P > 1 && step < steps; ++step, b += kStepNumbers) {
    const auto rows = [&](int plane) { load_rows<R>(a + (step * P + plane) * kTile, kTileLine, next); };
    const auto columns = [&](const uint16_t* tiles) { load_columns(tiles, kTileLine, kTileBytes); };
    const bool making = fresh && step + 1 < steps;
    const auto make = [&](int from) {
      if (!making) return;
      const int to = std::min(from + kSome, kLines);
      make_lower_parts<kWeightParts>(b + kStepNumbers, lower.apart, lower.of(step + 1), from, to);
    };
    if (fresh) prefetch_step<T>(b + 2 * kStepNumbers, lower.apart);
    columns(b);
    if constexpr (P == 3) {
      rows(2);
      add_bf16_products<R>();
    }
    make(0);
    rows(1);
    add_bf16_products<R>();
    if constexpr (kWhole) {
      make(kSome);
      columns(kIsMade ? b + lower.apart : lower.of(step));
      if constexpr (P == 3) add_bf16_products<R>();
      make(2 * kSome);
      rows(0);
      add_bf16_products<R>();
      make(3 * kSome);
      if constexpr (kWeightParts == 3) {
        columns(lower.of(step) + 2 * kTile);
        add_bf16_products<R>();
      }
      make(4 * kSome);
      finish_stores();
    }
    meanwhile();
  }
  if constexpr (P > 1) b -= steps * kStepNumbers;
  for (int64_t step = 0; step < steps; ++step, b += kStepNumbers) {
    load_columns(b, kTileLine, kTileBytes);
    load_rows<R>(a + step * P * kTile, kTileLine, next);
    add_bf16_products<R>();
    if constexpr (P == 1) meanwhile();
  }
  store_sums<R>(c, kPanel * 4);
}

// Numbers of a step of a panel that is split into P parts and in memory, [P][2 column tiles][tile].
template <int P>
constexpr int64_t kSplitStep = P * 2 * kTile;

struct SplitPanels {
  const uint16_t* start;  // [steps][kSplitStep<P>], `next` numbers apart
  int64_t count, next;
};

// Sums to c, and the first products of the next ones; sum by sum, so that tiles do not wait for stores.
inline void store_and_begin(char* c, int64_t stride) {
  _tile_stored(0, c, stride);
  _tile_zero(0);
  _tile_dpbf16ps(0, 4, 6);
  _tile_stored(1, c + kTileLine, stride);
  _tile_zero(1);
  _tile_dpbf16ps(1, 4, 7);
  _tile_stored(2, c + kTileRows * stride, stride);
  _tile_zero(2);
  _tile_dpbf16ps(2, 5, 6);
  _tile_stored(3, c + kTileRows * stride + kTileLine, stride);
  _tile_zero(3);
  _tile_dpbf16ps(3, 5, 7);
}

template <int P>
constexpr int kSplitProducts = P == 3 ? 6 : P == 2 ? 3 : 1;  // of 2 x 2 tiles, in a step

// c[32][panels * 32] = a @ b, split into P parts both, over `steps`; rows of c are `stride` numbers apart. As in
// `multiply_tiles` the products of lower parts come first; `meanwhile` is called after each of a step's products.
template <int P, class F>
inline void multiply_split(int64_t steps, const uint16_t* a, const SplitPanels& panels, float* c, int64_t stride,
                           F&& meanwhile) {
  const uint16_t* b = panels.start;
  char* ready = nullptr;  // where the sums go
  const auto rows = [&](int64_t step, int plane) {
    load_rows<2>(a + (step * P + plane) * kTile, kTileLine, steps * P * kTileBytes);
  };
  const auto columns = [&](int64_t step, int plane) {
    load_columns(b + step * kSplitStep<P> + plane * 2 * kTile, kTileLine, kTileBytes);
  };
  const auto add = [&] {
    if (ready != nullptr) store_and_begin(std::exchange(ready, nullptr), stride * 4);
    else add_bf16_products<2>();
    meanwhile();
  };
  finish_stores();
  zero_sums<2>();
  for (int64_t panel = 0; panel < panels.count; ++panel, b += panels.next) {
    for (int64_t step = 0; P > 1 && step < steps; ++step) {
      if constexpr (P == 3) {
        columns(step, 1);
        rows(step, 1);
        add();
      }
      columns(step, 0);
      if constexpr (P == 2) rows(step, 1);
      add();
      if constexpr (P == 3) {
        rows(step, 2);
        add();
      }
      rows(step, 0);
      columns(step, 1);
      add();
      if constexpr (P == 3) {
        columns(step, 2);
        add();
      }
    }
    for (int64_t step = 0; step < steps; ++step) {
      columns(step, 0);
      if (steps > 1 || P == 1) rows(step, 0);
      add();
    }
    ready = reinterpret_cast<char*>(c + panel * kPanel);
  }
  store_sums<2>(ready, stride * 4);
}

constexpr int kSomeLines = 11;  // of a pair's lower parts: a third of a panel's

// Sums of one panel of a pair, the first or the second, and rows of tile 4 or 5.
template <int P, int A>
inline void add_pair_products() {
  if constexpr (P == 0 && A == 4) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
  } else if constexpr (P == 0) {
    _tile_dpbf16ps(0, 5, 6);
    _tile_dpbf16ps(1, 5, 7);
  } else if constexpr (A == 4) {
    _tile_dpbf16ps(2, 4, 6);
    _tile_dpbf16ps(3, 4, 7);
  } else {
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
}

// The high parts' products of a pair, over `steps`.
template <int P, class F>
inline void add_high_pair_products(int64_t steps, const uint16_t* a, const uint16_t* b, int64_t next, F&& meanwhile) {
  for (int64_t step = 0; step < steps; ++step, b += kStepNumbers, a += P * kTile) {
    if constexpr (P == 1) {
      prefetch_step<uint16_t>(b + 2 * kStepNumbers, 0);
      prefetch_step<uint16_t>(b + 2 * kStepNumbers + next, 0);
    }
    _tile_loadd(4, a, kTileLine);
    load_columns(b, kTileLine, kTileBytes);
    add_pair_products<0, 4>();
    load_columns(b + next, kTileLine, kTileBytes);
    add_pair_products<1, 4>();
    if constexpr (P == 1) meanwhile();
  }
}

// The products of lower parts of a pair in one step. `make` is called between them, with a panel and its first line.
template <class T, int P, class F>
inline void add_lower_pair_products(const uint16_t* a, const uint16_t* b, int64_t next, int64_t apart,
                                    const uint16_t* lower, F&& make) {
  constexpr bool kHasLow = std::min(P, kPartsOf<T>) == 3, kIsMade = kPartsOf<T> == 2;
  const auto columns = [](const uint16_t* tiles) { load_columns(tiles, kTileLine, kTileBytes); };
  if constexpr (P == 3) _tile_loadd(4, a + 2 * kTile, kTileLine);
  _tile_loadd(5, a + kTile, kTileLine);
  columns(b);
  if constexpr (P == 3) add_pair_products<0, 4>();
  add_pair_products<0, 5>();
  make(0, 0);
  columns(b + next);
  if constexpr (P == 3) add_pair_products<1, 4>();
  add_pair_products<1, 5>();
  make(0, kSomeLines);
  if constexpr (sizeof(T) == 2) return;
  _tile_loadd(4, a, kTileLine);
  columns(kIsMade ? b + apart : lower);
  if constexpr (P == 3) add_pair_products<0, 5>();
  add_pair_products<0, 4>();
  make(0, 2 * kSomeLines);
  columns(kIsMade ? b + next + apart : lower + kLowerNumbers);
  if constexpr (P == 3) add_pair_products<1, 5>();
  add_pair_products<1, 4>();
  make(1, 0);
  if constexpr (kHasLow) {
    columns(lower + 2 * kTile);
    add_pair_products<0, 4>();
  }
  make(1, kSomeLines);
  if constexpr (kHasLow) {
    columns(lower + kLowerNumbers + 2 * kTile);
    add_pair_products<1, 4>();
  }
  make(1, 2 * kSomeLines);
  finish_stores();
}

// c[2 panels][16][32] = a @ b over `steps` of kDepth: the sums of `multiply_tiles<1, T, P>` for two panels, `next`
// numbers from one to the other; their planes are `apart`. Each product waits some 50 cycles for the one before it in
// its sum, which four sums hide.
template <class T, int P, class F>
inline void multiply_pair(int64_t steps, const uint16_t* a, const uint16_t* b, int64_t next, int64_t apart,
                          uint16_t* lower, float* c, F&& meanwhile) {
  constexpr bool kMakes = sizeof(T) == 4 && P > 1 && kPartsOf<T> == 3;
  constexpr int kWeightParts = std::min(P, kPartsOf<T>), kLines = 2 * kTileRows;
  const auto lower_of = [&](int64_t step) { return lower + (step & 1) * 2 * kLowerNumbers; };
  if constexpr (kMakes)
    for (int panel = 0; panel < 2; ++panel)
      make_lower_parts<kWeightParts>(b + panel * next, apart, lower_of(0) + panel * kLowerNumbers, 0, kLines);
  finish_stores();
  zero_sums<2>();
  for (int64_t step = 0; P > 1 && step < steps; ++step, b += kStepNumbers, a += P * kTile) {
    const auto make = [&](int panel, int from) {
      if (!kMakes || step + 1 == steps) return;
      const uint16_t* packed = b + panel * next + kStepNumbers;
      uint16_t* made = lower_of(step + 1) + panel * kLowerNumbers;
      make_lower_parts<kWeightParts>(packed, apart, made, from, std::min(from + kSomeLines, kLines));
    };
    if constexpr (kPartsOf<T> != 2) {
      prefetch_step<T>(b + 2 * kStepNumbers, apart);
      prefetch_step<T>(b + 2 * kStepNumbers + next, apart);
    }
    add_lower_pair_products<T, P>(a, b, next, apart, lower_of(step), make);
    meanwhile();
  }
  const int64_t back = P > 1 ? steps : 0;
  add_high_pair_products<P>(steps, a - back * P * kTile, b - back * kStepNumbers, next, meanwhile);
  store_sums<2>(c, kPanel * 4);
}

}  // namespace
