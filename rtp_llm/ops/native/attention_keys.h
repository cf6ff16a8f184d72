// What attention on vectors and attention on tiles share: which keys a row sees, and how rows are packed.
#pragma once
#include "activation.h"
#include "gemm.h"

namespace {

// Keys by their place in a sequence.
struct Keys {
  int64_t from, to;

  // x where the lane, j + its place, is among the keys; else `other`.
  Vec select(int64_t j, Vec x, Vec other) const {
    if (j >= from && j + kWidth <= to) return x;
    const VecInt lane = lane_numbers();
    return ((lane >= int32_t(from - j)) & (lane < int32_t(to - j))) ? x : other;
  }
};

// 1 / the sum of a row's weights; 0 of a row that sees no key, whose result is 0.
inline float inverted(float sum) { return sum == 0.0f ? 0.0f : 1.0f / sum; }

struct Visibility {
  bool causal;
  int64_t window;  // 0: none

  // The keys that a row sees, of `length` that are there; it may be none, from >= to.
  Keys of(int64_t row, int64_t length) const {
    const int64_t from = window > 0 ? std::max<int64_t>(0, row - window + 1) : 0;
    if (causal) return {from, std::min(length, row + 1)};
    return {from, window > 0 ? std::min(length, row + window) : length};
  }
};

// What makes a score of a product, beside the scale: a cap, and a bias by the distance from query to key.
struct Adjustment {
  static constexpr float kLog2E = 1.44269504089f;

  float scale, softcap;  // 0: none
  const float* bias;     // [heads][2 * reach - 1], of one head at distance 0, or null
  int64_t reach;

  bool any() const { return softcap > 0 || bias != nullptr; }
  Adjustment of_head(int64_t h) const {
    return {scale, softcap, bias == nullptr ? nullptr : bias + h * (2 * reach - 1) + reach - 1, reach};
  }

  // What products are multiplied by: it makes exponents of two of them, or what the cap's tanh takes.
  float factor() const { return softcap > 0 ? scale / softcap : scale * kLog2E; }

  // Of the query at the place `row`: products, which `by` multiplies to what `factor` gives -> exponents of two.
  void apply(float* scores, Keys keys, int64_t row, float by) const {
    for (int64_t j = keys.from; j < keys.to; j += kWidth) {
      Vec score = load(scores + j) * by;
      if (softcap > 0) score = tanh(score) * (softcap * kLog2E);
      if (bias != nullptr) score += bias_at(j - row) * kLog2E;
      store(scores + j, score);
    }
  }

 private:
  // Of the distances from this one on; beyond the table's ends, what stands there.
  Vec bias_at(int64_t distance) const {
    if (distance > -reach && distance + kWidth <= reach) return load(bias + distance);
    Vec found{};
    for (int lane = 0; lane < kWidth; ++lane)
      found[lane] = bias[std::clamp<int64_t>(distance + lane, 1 - reach, reach - 1)];
    return found;
  }
};

// Rows of a head, of keys or values.
struct HeadRows {
  const float* start;
  int64_t count, stride;

  HeadRows moved(int64_t numbers) const { return {start + numbers, count, stride}; }
  HeadRows part(int64_t from, int64_t to) const {
    from = std::clamp<int64_t>(from, 0, count);
    return {start + from * stride, std::clamp<int64_t>(to, from, count) - from, stride};
  }
};

// The keys of a sequence: those of its prefix, then its own.
struct KeyRows {
  HeadRows before, own;

  int64_t count() const { return before.count + own.count; }
  KeyRows moved(int64_t numbers) const { return {before.moved(numbers), own.moved(numbers)}; }
  KeyRows part(int64_t from, int64_t to) const {
    return {before.part(from, to), own.part(from - before.count, to - before.count)};
  }
};

#if defined(__AVX512F__)
// Sixteen rows, `stride` apart, of which the numbers d : d + 16 -> columns of a panel's rows d : d + 16.
inline void transpose_sixteen(const float* rows, int64_t stride, float* keys) {
  Vec twos[16], fours[16];
  for (int i = 0; i < 16; i += 2) {
    const Vec a = load(rows + i * stride), b = load(rows + (i + 1) * stride);
    twos[i] = Vec(_mm512_unpacklo_ps(a, b));
    twos[i + 1] = Vec(_mm512_unpackhi_ps(a, b));
  }
  for (int i = 0; i < 16; i += 4)
    for (int half = 0; half < 2; ++half) {
      const __m512d a = __m512d(twos[i + half]), b = __m512d(twos[i + 2 + half]);
      fours[i + 2 * half] = Vec(_mm512_unpacklo_pd(a, b));
      fours[i + 2 * half + 1] = Vec(_mm512_unpackhi_pd(a, b));
    }
  for (int k = 0; k < 4; ++k)
    for (int odd = 0; odd < 2; ++odd) {
      const Vec a = shuffle_lines(fours[k], fours[4 + k], odd), b = shuffle_lines(fours[8 + k], fours[12 + k], odd);
      store(keys + (4 * odd + k) * kPanel, shuffle_lines(a, b, false));
      store(keys + (4 * odd + 8 + k) * kPanel, shuffle_lines(a, b, true));
    }
}
#endif

#if defined(__SSE2__)
inline void transpose_four(const float* rows, int64_t size, int64_t head_dim, float* keys) {
  for (int64_t d = 0; d < head_dim; d += 4, rows += 4, keys += 4 * kPanel) {
    __m128 a = _mm_loadu_ps(rows), b = _mm_loadu_ps(rows + size);
    __m128 c = _mm_loadu_ps(rows + 2 * size), e = _mm_loadu_ps(rows + 3 * size);
    _MM_TRANSPOSE4_PS(a, b, c, e);
    _mm_storeu_ps(keys, a);
    _mm_storeu_ps(keys + kPanel, b);
    _mm_storeu_ps(keys + 2 * kPanel, c);
    _mm_storeu_ps(keys + 3 * kPanel, e);
  }
}
#endif

constexpr int64_t kRowsAhead = 16;  // whose lines are asked for before they are packed

// Keys -> columns of panels [keys / kPanel][depth][kPanel], depth >= head_dim, from column `first` on.
inline void pack_keys(HeadRows from, int64_t first, int64_t head_dim, int64_t depth, float* panels) {
  for (int64_t j = 0, lanes; j < from.count; j += lanes) {
    const int64_t start = (first + j) % kPanel;
    lanes = std::min<int64_t>(kPanel - start, from.count - j);
    const float* rows = from.start + j * from.stride;
    float* panel = panels + (first + j) / kPanel * depth * kPanel + start;
    int64_t lane = 0;
#if defined(__AVX512F__)
    for (; lane + 16 <= lanes && head_dim % 16 == 0; lane += 16)
      for (int64_t d = 0; d < head_dim; d += 16)
        transpose_sixteen(rows + lane * from.stride + d, from.stride, panel + d * kPanel + lane);
#endif
#if defined(__SSE2__)
    for (; lane + 4 <= lanes && head_dim % 4 == 0; lane += 4) {
      for (int64_t i = kRowsAhead; i < kRowsAhead + 4; ++i)
        for (int64_t d = 0; d < head_dim; d += 16) __builtin_prefetch(rows + (lane + i) * from.stride + d);
      transpose_four(rows + lane * from.stride, from.stride, head_dim, panel + lane);
    }
#endif
    for (; lane < lanes; ++lane)
      for (int64_t d = 0; d < head_dim; ++d) panel[d * kPanel + lane] = rows[lane * from.stride + d];
  }
}

// Values -> rows of panels [head_dim / kPanel][length][kPanel], from the row on that `panels` points at.
inline void pack_values(HeadRows from, int64_t head_dim, int64_t length, float* panels) {
  for (int64_t d = 0; d < head_dim; d += kPanel, panels += length * kPanel) {
    const int64_t cols = std::min<int64_t>(kPanel, head_dim - d), left = std::min<int64_t>(kWidth, cols);
    for (int64_t j = 0; j < from.count; ++j) {
      const float* row = from.start + j * from.stride + d;
      __builtin_prefetch(row + kRowsAhead * from.stride);
      store(panels + j * kPanel, load_lanes(row, left));
      store(panels + j * kPanel + kWidth, load_lanes(row + left, cols - left));
    }
  }
}

}  // namespace
