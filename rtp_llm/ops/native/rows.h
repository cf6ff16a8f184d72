// Ops that work row by row: embed, norm, concat, l2_normalize; and pool, sequence by sequence.
#pragma once
#include <cmath>

#include "gemm.h"

namespace {

// Rows are shared out in runs that are long enough to be worth a hand-over.
inline int64_t plan_rows(int64_t rows, int threads, int64_t& block) {
  block = threads == 1 ? rows : std::max<int64_t>(4, ceil_div(rows, 4 * threads));
  return ceil_div(rows, block);
}

struct NormWeights {
  const float *weight, *bias;  // weight null: no norm
  float eps;
  bool centered;  // layer norm; else rms

  static float sum(const float* x, int64_t n) {
    Vec sums{};
    int64_t j = 0;
    for (; j + kWidth <= n; j += kWidth) sums += load(x + j);
    float total = sum_lanes(sums);
    for (; j < n; ++j) total += x[j];
    return total;
  }

  static float sum_of_squares(const float* x, int64_t n, float mean) {
    Vec sums{};
    int64_t j = 0;
    for (; j + kWidth <= n; j += kWidth) {
      const Vec centered = load(x + j) - mean;
      sums += centered * centered;
    }
    float total = sum_lanes(sums);
    for (; j < n; ++j) total += (x[j] - mean) * (x[j] - mean);
    return total;
  }

  void apply(const float* x, float* y, int64_t n) const {
    const float mean = centered ? sum(x, n) / float(n) : 0.0f;
    const float scale = 1.0f / std::sqrt(sum_of_squares(x, n, mean) / float(n) + eps);
    if (bias != nullptr)
      for (int64_t j = 0; j < n; ++j) y[j] = (x[j] - mean) * scale * weight[j] + bias[j];
    else
      for (int64_t j = 0; j < n; ++j) y[j] = (x[j] - mean) * scale * weight[j];
  }
};

struct NormRows {
  float* y;
  const float *x, *residual;  // residual null: nothing is added
  int64_t rows, size;
  NormWeights norm;
  int64_t block = 0;

  int64_t plan(int threads) { return plan_rows(rows, threads, block); }

  void run(int64_t task) const {
    for (int64_t i = task * block; i < std::min(rows, (task + 1) * block); ++i) {
      norm.apply(x + i * size, y + i * size, size);
      if (residual != nullptr) add(residual + i * size, y + i * size);
    }
  }

 private:
  void add(const float* from, float* row) const {
    for (int64_t j = 0; j < size; ++j) row[j] += from[j];
  }
};

constexpr int kMaxLookups = 4;

struct Embed {
  float* y;
  int64_t rows, size, lookups, bf16_tables;
  float scale;
  const void* tables[kMaxLookups];  // fp32, or bf16 where bit t of `bf16_tables` is set
  const int32_t* ids[kMaxLookups];
  NormWeights norm;
  int64_t block = 0;

  int64_t plan(int threads) { return plan_rows(rows, threads, block); }

  void run(int64_t task) const {
    for (int64_t i = task * block; i < std::min(rows, (task + 1) * block); ++i) {
      float* row = y + i * size;
      for (int t = 0; t < lookups; ++t) {
        const int64_t start = ids[t][i] * size;
        if (bf16_tables >> t & 1) add(static_cast<const uint16_t*>(tables[t]) + start, row, t == 0);
        else add(static_cast<const float*>(tables[t]) + start, row, t == 0);
      }
      if (scale != 1.0f)
        for (int64_t j = 0; j < size; ++j) row[j] *= scale;
      if (norm.weight != nullptr) norm.apply(row, row, size);
    }
  }

 private:
  template <class T>
  void add(const T* from, float* row, bool first) const {
    for (int64_t j = 0; j < size; j += kWidth) {
      const int64_t lanes = std::min<int64_t>(kWidth, size - j);
      const Vec x = load_lanes(from + j, lanes);
      store_lanes(row + j, first ? x : load_lanes(row + j, lanes) + x, lanes);
    }
  }
};

struct TakeRows {
  float* y;
  const float* x;
  const int32_t* index;
  int64_t rows, size;
  int64_t block = 0;

  int64_t plan(int threads) { return plan_rows(rows, threads, block); }

  void run(int64_t task) const {
    for (int64_t i = task * block; i < std::min(rows, (task + 1) * block); ++i)
      if (index[i] < 0) std::memset(y + i * size, 0, size_t(size) * 4);
      else std::memcpy(y + i * size, x + index[i] * size, size_t(size) * 4);
  }
};

struct CopyColumns {
  float* y;  // already at its first column
  const float* x;
  int64_t rows, size, stride;

  int64_t plan(int) { return 1; }

  void run(int64_t) const {
    for (int64_t i = 0; i < rows; ++i) std::memcpy(y + i * stride, x + i * size, size_t(size) * 4);
  }
};

struct Normalize {
  float* y;
  const float* x;
  int64_t rows, size;
  int64_t block = 0;

  int64_t plan(int threads) { return plan_rows(rows, threads, block); }

  void run(int64_t task) const {
    for (int64_t i = task * block; i < std::min(rows, (task + 1) * block); ++i) {
      double squares = 0.0;
      for (int64_t j = 0; j < size; ++j) squares += double(x[i * size + j]) * double(x[i * size + j]);
      const double length = std::max(std::sqrt(squares), 1e-12);
      for (int64_t j = 0; j < size; ++j) y[i * size + j] = float(double(x[i * size + j]) / length);
    }
  }
};

enum PoolMode : int { kCls = 0, kMean, kMax, kMeanSqrtLen, kWeightedMean, kLastToken };

struct Pool {
  float* y;
  const float* x;
  const int32_t *cu_seqlens, *prompt_lens;  // prompt_lens null: nothing is skipped
  int64_t num_seqs, size;
  int mode;

  int64_t plan(int) { return num_seqs; }

  void run(int64_t seq) const {
    const float* rows = x + cu_seqlens[seq] * size;
    const int64_t length = cu_seqlens[seq + 1] - cu_seqlens[seq];
    const int64_t skipped = prompt_lens == nullptr ? 0 : std::min<int64_t>(prompt_lens[seq], length);
    float* row = y + seq * size;
    if (length == 0 || (mode == kLastToken && skipped == length)) return std::fill(row, row + size, 0.0f);
    if (mode == kCls) return copy(rows + (skipped < length ? skipped : 0) * size, row);
    if (mode == kLastToken) return copy(rows + (length - 1) * size, row);
    for (int64_t j = 0; j < size; j += kColumns)
      reduce(rows + j, skipped, length, std::min<int64_t>(kColumns, size - j), row + j);
  }

 private:
  static constexpr int64_t kColumns = 64;

  void copy(const float* from, float* to) const { std::memcpy(to, from, size_t(size) * 4); }

  // Sums in float64, rows ascending.
  void reduce(const float* rows, int64_t skipped, int64_t length, int64_t cols, float* row) const {
    double sums[kColumns] = {}, weight = 0.0;
    for (int64_t i = skipped; i < length; ++i) {
      const double w = mode == kWeightedMean ? double(i + 1) : 1.0;
      weight += w;
      for (int64_t j = 0; j < cols; ++j) {
        const double value = rows[i * size + j];
        if (mode != kMax) sums[j] += w * value;
        else if (i == skipped || value > sums[j] || value != value) sums[j] = value;  // a NaN stays
      }
    }
    const double divisor = mode == kMax || weight == 0.0 ? 1.0 : mode == kMeanSqrtLen ? std::sqrt(weight) : weight;
    for (int64_t j = 0; j < cols; ++j) row[j] = float(sums[j] / divisor);
  }
};

}  // namespace
