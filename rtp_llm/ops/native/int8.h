// Numbers in 8 bits: rows of activations with a scale and a zero each, columns of weights with a scale each.
//
// A row is x ~ scale (q - zero), q in [0, 255] over the row's own range, zero included: so 0 stays 0, and a row's bits
// depend on the row alone. A weight is w ~ scale q, q in [-127, 127]. ops/int8.py is the definition, bit for bit.
#pragma once
#include "dot.h"
#include "gemm.h"

namespace {

// A quantised row of K numbers: this head, then the numbers, filled up with zeros to whole cache lines. With the head's
// line, rows of K = 4096 do not all fall into the same cache sets.
struct alignas(64) RowHead {
  float scale;
  int32_t zero;
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
  struct Range {
    Vec low{}, high{}, invalid{};

    void add(Vec x) {
      low = smaller(low, x);
      high = larger(high, x);
      invalid += x * 0.0f;  // NaN from infinity and NaN, which minimum and maximum may lose
    }
  };

  void quantize(const float* row, char* to, int64_t stride) const {
    const Range range = range_of(row);
    const float low = -max_lanes(-range.low), width = max_lanes(range.high) - low;
    // Below 1e-30 a row counts as zero: its inverse would not be finite.
    const float inverse = width > 1e-30f ? 255.0f / width : 0.0f;
    const int32_t zero = nearest(broadcast(-low * inverse))[0] - kOffset;
    const RowHead head{inverse > 0.0f ? width / 255.0f + sum_lanes(range.invalid) : sum_lanes(range.invalid), zero};
    std::memcpy(to, &head, sizeof head);
    auto* numbers = reinterpret_cast<Quantized*>(to + sizeof head);
    const int64_t padded = (stride - int64_t(sizeof head)) / int64_t(sizeof(Quantized));
    for (int64_t k = 0; k < padded; k += kWidth) {
      const int64_t lanes = std::clamp<int64_t>(K - k, 0, kWidth);
      *reinterpret_cast<QuantizedUnaligned*>(numbers + k) = rounded(load_lanes(row + k, lanes) * inverse, zero);
    }
  }

  Range range_of(const float* row) const {
    Range even, odd;
    int64_t k = 0;
    for (; k + 2 * kWidth <= K; k += 2 * kWidth) {
      even.add(load(row + k));
      odd.add(load(row + k + kWidth));
    }
    for (; k < K; k += kWidth) even.add(load_lanes(row + k, std::min<int64_t>(kWidth, K - k)));
    return {smaller(even.low, odd.low), larger(even.high, odd.high), even.invalid + odd.invalid};
  }

  static QuantizedUnaligned rounded(Vec x, int32_t zero) {
    VecInt q = nearest(x) + zero;
    q = q < -kOffset ? VecInt{} - kOffset : q;
    q = q > 255 - kOffset ? VecInt{} + (255 - kOffset) : q;
    return __builtin_convertvector(q, QuantizedUnaligned);
  }
};

// A packed int8 weight: scales and sums of the columns, filled up to whole panels, then the panels,
// [ceil(N / kPanel)][ceil(K / kGroup)][kPanel][kGroup].
struct Int8Weight {
  int64_t N, K;

  int64_t padded() const { return ceil_div(N, kPanel) * kPanel; }
  int64_t panel_bytes() const { return ceil_div(K, kGroup) * kGroup * kPanel; }
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

 private:
  float pack_column(const float* w, int8_t* column, int32_t& sum) const {
    float largest = 0.0f, invalid = 0.0f;
    for (int64_t k = 0; k < K; ++k) {
      largest = std::max(largest, std::fabs(w[k]));
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
