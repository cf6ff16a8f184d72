// What follows a product, on one tile of it: bias, activation, residual.
#pragma once
#include <algorithm>

#include "activation.h"

namespace {

// A tile's part of some rows, `stride` apart, that is yet to be asked for.
struct Lines {
  const float* next = nullptr;
  int64_t stride = 0;
  int rows = 0;

  template <bool kToWrite>
  void fetch_row() {
    for (int j = 0; j < kPanel; j += 16) __builtin_prefetch(next + j, kToWrite);
    next += stride;
    --rows;
  }
};

// What will be written and read after a product: it is asked for row by row while that is computed.
//
// NOTE: all at once it takes every place for lines on their way to L1, and what is multiplied waits behind memory: with a
// residual a product of 768 numbers took a tenth longer.
struct Awaited {
  Lines written{}, read{};

  // Of columns `numbers` further on.
  Awaited moved(int64_t numbers) const {
    Awaited other = *this;
    other.written.next += numbers;
    other.read.next += numbers;
    return other;
  }
  void fetch_row() {
    if (written.rows > 0) written.fetch_row<true>();
    else if (read.rows > 0) read.fetch_row<false>();
  }
  void fetch() {
    while (written.rows + read.rows > 0) fetch_row();
  }
};

struct Epilogue {
  float* y;  // [M, N]
  const float *bias, *residual;
  int64_t N;
  int activation;

  Awaited awaited(int rows, int64_t m, int64_t n) const {
    const int64_t start = m * N + n;
    return {{y + start, N, rows}, residual == nullptr ? Lines{} : Lines{residual + start, N, rows}};
  }

  // y[m : m + rows, n : n + cols]; `product(row, column, lanes)` gives the tile's vectors.
  template <class Product>
  void finish(const Product& product, int rows, int64_t cols, int64_t m, int64_t n) const {
    switch (activation) {
      case kGelu: return finish_with<gelu>(product, rows, cols, m, n);
      case kGeluTanh: return finish_with<gelu_tanh>(product, rows, cols, m, n);
      case kRelu: return finish_with<relu>(product, rows, cols, m, n);
      case kSilu: return finish_with<silu>(product, rows, cols, m, n);
      case kTanh: return finish_with<tanh>(product, rows, cols, m, n);
      default: return finish_with<identity>(product, rows, cols, m, n);
    }
  }

 private:
  template <Vec (*F)(Vec), class Product>
  void finish_with(const Product& product, int rows, int64_t cols, int64_t m, int64_t n) const {
    if (cols == kPanel) return finish_full<F>(product, rows, m, n);
    for (int r = 0; r < rows; ++r) {
      float* c = y + (m + r) * N + n;
      const float* other = residual == nullptr ? nullptr : residual + (m + r) * N + n;
      for (int64_t j = 0; j < cols; j += kWidth) {
        const int64_t lanes = std::min<int64_t>(kWidth, cols - j);
        Vec v = product(r, j, lanes);
        if (bias != nullptr) v += load_lanes(bias + n + j, lanes);
        v = F(v);
        if (other != nullptr) v += load_lanes(other + j, lanes);
        store_lanes(c + j, v, lanes);
      }
    }
  }

  template <Vec (*F)(Vec), class Product>
  void finish_full(const Product& product, int rows, int64_t m, int64_t n) const {
    const Vec bias0 = bias == nullptr ? Vec{} : load(bias + n);
    const Vec bias1 = bias == nullptr ? Vec{} : load(bias + n + kWidth);
    for (int r = 0; r < rows; ++r) {
      float* c = y + (m + r) * N + n;
      Vec left = F(product(r, 0, kWidth) + bias0), right = F(product(r, kWidth, kWidth) + bias1);
      if (residual != nullptr) {
        left += load(residual + (m + r) * N + n);
        right += load(residual + (m + r) * N + n + kWidth);
      }
      store(c, left);
      store(c + kWidth, right);
    }
  }
};

}  // namespace
