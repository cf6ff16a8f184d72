// How fast this core is when nothing but arithmetic, or nothing but memory, limits it.
#pragma once
#include <chrono>
#include <utility>

#include "linear.h"

namespace {

// Operations a nanosecond of `slice`, which does so many and takes a millisecond or more; the best one within `seconds`.
template <class F>
inline double best_rate(double seconds, double operations, F&& slice) {
  using Clock = std::chrono::steady_clock;
  const auto begin = Clock::now();
  double best = 0.0;
  for (auto now = begin; now - begin < std::chrono::duration<double>(seconds);) {
    const auto start = now;
    slice();
    now = Clock::now();
    best = std::max(best, 1e-9 * operations / std::chrono::duration<double>(now - start).count());
  }
  return best;
}

// NOTE: the numbers come from outside: of constants the compiler computes a chain that stays where it starts (at 1).
template <size_t... I>
Vec multiply_adds(int64_t steps, const volatile float* numbers, std::index_sequence<I...>) {
  const Vec factor = broadcast(numbers[0]), term = broadcast(numbers[1]);
  Vec sums[] = {broadcast(numbers[1] + float(I))...};
  for (int64_t step = 0; step < steps; ++step) ((sums[I] = sums[I] * factor + term), ...);
  return (sums[I] + ...);
}

inline double vector_peak(double seconds) {
  constexpr int64_t kChains = 12, kSteps = 500000;
  volatile float sink = 0.0f;
  const volatile float numbers[] = {0.999f, 0.001f};
  return best_rate(seconds, 2.0 * kWidth * kChains * kSteps, [&] {
    sink = sink + sum_lanes(multiply_adds(kSteps, numbers, std::make_index_sequence<kChains>{}));
  });
}

#if defined(__AMX_BF16__)
// NOTE: of numbers that differ: on zeros, and without loads, a core draws less power and runs a third faster.
inline double tile_peak(double seconds) {
  constexpr int64_t kSteps = 20000;
  alignas(64) uint16_t tiles[4 * kTile];
  for (int64_t i = 0; i < 4 * kTile; ++i) tiles[i] = uint16_t(0x3F00 + i * 37 % 256 + (i % 3 == 0 ? 0x8000 : 0));
  const Tiles shaped;
  return best_rate(seconds, 8.0 * kTile * kTileRows * kSteps, [&] {
    zero_sums<2>();
    for (int64_t step = 0; step < kSteps; ++step) {
      load_rows<2>(tiles, kTileLine, kTileBytes);
      load_columns(tiles + 2 * kTile, kTileLine, kTileBytes);
      add_bf16_products<2>();
    }
  });
}
#else
inline double tile_peak(double) { return 0.0; }
#endif

// GB/s at which this thread reads memory from its beginning to its end, pass by pass.
inline double read_rate(const float* numbers, int64_t count, double seconds) {
  constexpr int kSums = 4;
  volatile float sink = 0.0f;
  return best_rate(seconds, double(count) * sizeof *numbers, [&] {
    Vec sums[kSums]{};
    for (int64_t i = 0; i + kSums * kWidth <= count; i += kSums * kWidth)
      for (int k = 0; k < kSums; ++k) sums[k] += load(numbers + i + k * kWidth);
    sink = sink + sum_lanes(sums[0] + sums[1] + sums[2] + sums[3]);
  });
}

}  // namespace
