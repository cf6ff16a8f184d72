// y = activation(x w^T + bias) + residual on a weight of 8 or 4 bits, on AMX tiles, as exact as fp32.
//
// A panel is widened, as many k at a time as are multiplied, into its high and middle parts: a number, its integer times
// its group's scale, has 15 bits, so that there are no low ones. Where one part is multiplied, it is the nearest. A group
// is what a step takes along k.
#pragma once
#include "gemm_amx.h"
#include "grouped_weight.h"

namespace {

static_assert(kScaled == kDepth);

// `WidenPanel`, into P planes.
template <int kBits, int P>
void widen_panel(const void* weight, int64_t K, int64_t n, int64_t k0, int64_t steps, uint16_t* to, int64_t apart) {
  const GroupedWeight<kBits> packed{0, K};
  const auto* panel = static_cast<const uint8_t*>(weight) + n / kPanel * packed.panel_bytes();
  const auto* scales = reinterpret_cast<const uint16_t*>(panel) + k0 / kScaled * kPanel;
  const uint8_t* numbers = panel + packed.groups() * kPanel * 2 + k0 * packed.kStep;
  for (int64_t step = 0; step < steps; ++step, scales += kPanel, numbers += kDepth * packed.kStep, to += kStepNumbers) {
    const Vec left_scale = load_lanes(scales, kWidth), right_scale = load_lanes(scales + kWidth, kWidth);
    for (int64_t pair = 0; pair < kTileRows; ++pair) {
      Vec first[2] = {}, second[2] = {};  // past the last k there is nothing to read
      const int64_t k = k0 + step * kDepth + pair;
      if (k < K) widen<kBits>(numbers + pair * packed.kStep, left_scale, right_scale, first[0], first[1]);
      if (k + kTileRows < K)
        widen<kBits>(numbers + (pair + kTileRows) * packed.kStep, left_scale, right_scale, second[0], second[1]);
      for (int half = 0; half < 2; ++half)
        store_parts<P>(first_cut_parts<P>(first[half]), first_cut_parts<P>(second[half]), to + half * kTile + pair * kDepth,
                       apart);
    }
  }
}

template <int kBits>
struct LinearGrouped : LinearTiles {
  int64_t plan(int threads) {
    widen = bf16_parts == 1 ? widen_panel<kBits, 1> : widen_panel<kBits, 2>;
    return LinearTiles::plan(threads);
  }
};

}  // namespace
