// Numbers in 8 bits: rows of activations with a scale and a zero each, columns of weights with a scale each.
//
// A row is x ~ scale (q - zero), 254 steps over the row's own range, 0 included: so 0 stays 0, q in [0, 255] wherever
// the ends are rounded to, and a row's bits depend on the row alone. One number of each row may lie outside:
// transformers' rows have outliers, and the range of the others is a third as wide. What it has beyond [0, 255] is kept
// beside the row, and multiplied apart. A weight is w ~ scale q, q in [-127, 127], and where products are added in pairs
// two neighbours add up to 128 at most. ops/int8.py is the definition, bit for bit.
#pragma once
#include "dot.h"
#include "gemm.h"

namespace {

// A quantised row of K numbers: this head, then the numbers, filled up to whole cache lines. With the head's line, rows
// of K = 4096 do not all fall into the same cache sets.
struct alignas(64) RowHead {
  float scale;
  int32_t zero;
  int32_t place, excess;  // of the number that may lie outside: where it is, and what it has beyond [0, 255]
};

inline int64_t quantized_row_bytes(int64_t K) {
  return int64_t(sizeof(RowHead)) + ceil_div(K * int64_t(sizeof(Quantized)), 64) * 64;
}

struct Quantize {
  void* y;  // [rows][quantized_row_bytes(K)]
  const float* x;
  int64_t rows, K;
  int64_t block = 0;

  int64_t plan(int threads) {
    block = threads == 1 ? rows : std::max<int64_t>(4, ceil_div(rows, 4 * threads));
    return ceil_div(rows, block);
  }

  void run(int64_t task) const {
    const int64_t stride = quantized_row_bytes(K);
    for (int64_t i = task * block; i < std::min(rows, (task + 1) * block); ++i)
      quantize(x + i * K, static_cast<char*>(y) + i * stride, stride);
  }

 private:
  static constexpr float kSteps = 254.0f;

  // The two lowest and the two highest numbers of each lane of what was added, 0 among them.
  struct Ends {
    Vec low{}, lower{}, higher{}, high{}, invalid{};

    void add(Vec x) {
      lower = smaller(lower, larger(low, x));
      low = smaller(low, x);
      higher = larger(higher, smaller(high, x));
      high = larger(high, x);
      invalid += x * 0.0f;  // NaN from infinity and NaN, which minimum and maximum may lose
    }
  };

  struct Range {
    float bottom, width, outlier, invalid;
  };

  void quantize(const float* row, char* to, int64_t stride) const {
    const Range range = range_of(row);
    // Narrower than 1e-30, a row counts as zero: its inverse would not be finite. One that is not finite, or wider than
    // fp32 has numbers, has a scale that is not: nothing is said by its integers.
    const bool has_steps = range.width > 1e-30f && range.width < INFINITY && range.invalid == 0.0f;
    const float inverse = has_steps ? kSteps / range.width : 0.0f;
    const float scale = range.width > 1e-30f ? range.width / kSteps : 0.0f;
    const int32_t zero = has_steps ? nearest(broadcast(-range.bottom * inverse))[0] - kOffset : -kOffset;
    auto* numbers = reinterpret_cast<Quantized*>(to + sizeof(RowHead));
    const int64_t padded = (stride - int64_t(sizeof(RowHead))) / int64_t(sizeof(Quantized));
    for (int64_t k = 0; k < padded; k += kWidth) {
      const Vec x = load_lanes(row + k, std::clamp<int64_t>(K - k, 0, kWidth));
      store_numbers(numbers + k, nearest(x * inverse) + zero);
    }
    RowHead head{scale + range.invalid, zero, 0, 0};
    const int32_t whole = has_steps ? nearest(broadcast(range.outlier * inverse))[0] + zero : zero;
    const int32_t within = std::clamp(whole, -kOffset, 255 - kOffset);
    if (whole != within) {
      head.place = int32_t(find(row, range.outlier));
      head.excess = whole - within;
      numbers[head.place] = Quantized(within);
    }
    std::memcpy(to, &head, sizeof head);
  }

  // Of all numbers but the one without which it is narrowest; with that one, 128 times as wide at most.
  Range range_of(const float* row) const {
    Ends ends;
    for (int64_t k = 0; k < K; k += kWidth) ends.add(load_lanes(row + k, std::min<int64_t>(kWidth, K - k)));
    const Two high = two_largest(ends.high, ends.higher), low = two_largest(-ends.low, -ends.lower);
    const bool is_high = high.first - high.second >= low.first - low.second;
    const float top = is_high ? high.second : high.first, bottom = is_high ? -low.first : -low.second;
    const float width = std::max(top - bottom, (high.first + low.first) / 128.0f);
    return {bottom, width, is_high ? high.first : -low.first, sum_lanes(ends.invalid)};
  }

  // Where it is; 0 in a row with NaN.
  int64_t find(const float* row, float number) const {
    constexpr int64_t kBlock = 64;
    for (int64_t start = 0; start < K; start += kBlock) {
      const int64_t end = std::min(K, start + kBlock);
      int found = 0;
      for (int64_t k = start; k < end; ++k) found |= row[k] == number;
      if (found) return std::find(row + start, row + end, number) - row;
    }
    return 0;
  }
};

// Groups of a panel are filled up to a multiple of this, so that K ends with a whole AMX tile.
#if defined(__AMX_INT8__)
constexpr int kPaddedGroups = 16;
#else
constexpr int kPaddedGroups = 1;
#endif

// A packed int8 weight: scales and sums of the columns, filled up to whole panels, then the panels,
// [ceil(N / kPanel)][groups][kPanel][kGroup].
struct Int8Weight {
  int64_t N, K;

  int64_t padded() const { return ceil_div(N, kPanel) * kPanel; }
  int64_t panel_bytes() const {
    constexpr int64_t kStep = kPaddedGroups * kGroup;
    return ceil_div(K, kStep) * kStep * kPanel;
  }
  int64_t bytes() const { return padded() * 8 + padded() / kPanel * panel_bytes(); }

  float* scales(void* packed) const { return static_cast<float*>(packed); }
  int32_t* sums(void* packed) const { return static_cast<int32_t*>(packed) + padded(); }
  int8_t* panels(void* packed) const { return static_cast<int8_t*>(packed) + padded() * 8; }

  // From w [N, K].
  void pack(const float* w, void* packed) const {
    std::memset(packed, 0, size_t(bytes()));
    for (int64_t n = 0; n < N; ++n) {
      int8_t* column = panels(packed) + n / kPanel * panel_bytes() + n % kPanel * kGroup;
      scales(packed)[n] = pack_column(w + n * K, column, sums(packed)[n]);
    }
  }

  // From numbers [N, K] and scales [N] that are quantised already.
  void pack_quantized(const int8_t* q, const float* row_scales, void* packed) const {
    std::memset(packed, 0, size_t(bytes()));
    for (int64_t n = 0; n < N; ++n, q += K) {
      int8_t* column = panels(packed) + n / kPanel * panel_bytes() + n % kPanel * kGroup;
      scales(packed)[n] = row_scales[n];
      for (int64_t k = 0; k < K; ++k) {
        column[k / kGroup * kPanel * kGroup + k % kGroup] = q[k];
        sums(packed)[n] += q[k];
      }
    }
  }

 private:
  float pack_column(const float* w, int8_t* column, int32_t& sum) const {
    float largest = 0.0f, invalid = 0.0f;
    for (int64_t k = 0; k < K; ++k) {
      largest = std::max(largest, std::fabs(w[k]));
      if (kInt8InPairs && k % 2 == 1) largest = std::max(largest, std::fabs(w[k - 1] + w[k]));
      invalid += w[k] * 0.0f;
    }
    if (invalid != 0.0f) return invalid;
    if (largest <= 1e-30f) return 0.0f;
    const float inverse = 127.0f / largest;
    for (int64_t k = 0; k < K; ++k) {
      const auto q = int8_t(std::lrint(w[k] * inverse));
      column[k / kGroup * kPanel * kGroup + k % kGroup] = q;
      sum += q;
    }
    return largest / 127.0f;
  }
};

}  // namespace
