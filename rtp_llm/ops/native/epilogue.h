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

// NOTE: gates are written to y, and what they gate to the same place: a task computes both one after the other, and finds
// the gates in its cache.
struct Epilogue {
  float* y;  // [M, N], or half as wide where there are gates
  const float *bias, *residual;
  int64_t N;
  int activation;

  Awaited awaited(int rows, int64_t m, int64_t n) const {
    const Lines written{at(m, n), width(), rows};
    return {written, residual == nullptr ? Lines{} : Lines{residual + m * N + n, N, rows}};
  }

  // Of the rows m : m + rows and the product's columns n : n + cols; `product(row, column, lanes)` gives the tile's vectors.
  template <class Product>
  void finish(const Product& product, int rows, int64_t cols, int64_t m, int64_t n) const {
    if (n >= width()) return finish_with<identity, times>(product, rows, cols, m, n, at(m, n));
    const float* other = residual == nullptr ? nullptr : residual + m * N + n;
    switch (activation % kGates) {
      case kGelu: return finish_with<gelu, plus>(product, rows, cols, m, n, other);
      case kGeluTanh: return finish_with<gelu_tanh, plus>(product, rows, cols, m, n, other);
      case kRelu: return finish_with<relu, plus>(product, rows, cols, m, n, other);
      case kSilu: return finish_with<silu, plus>(product, rows, cols, m, n, other);
      case kTanh: return finish_with<tanh, plus>(product, rows, cols, m, n, other);
      default: return finish_with<identity, plus>(product, rows, cols, m, n, other);
    }
  }

 private:
  static Vec plus(Vec x, Vec other) { return x + other; }
  static Vec times(Vec x, Vec other) { return x * other; }

  int64_t width() const { return N / num_halves(activation); }
  float* at(int64_t m, int64_t n) const { return y + m * width() + (n < width() ? n : n - width()); }

  // What F makes is joined with `other`, rows as far apart as those of y, or null.
  template <Vec (*F)(Vec), Vec (*Join)(Vec, Vec), class Product>
  void finish_with(const Product& product, int rows, int64_t cols, int64_t m, int64_t n, const float* other) const {
    if (cols == kPanel) return finish_full<F, Join>(product, rows, m, n, other);
    for (int r = 0; r < rows; ++r) {
      const int64_t row = r * width();
      for (int64_t j = 0; j < cols; j += kWidth) {
        const int64_t lanes = std::min<int64_t>(kWidth, cols - j);
        Vec v = product(r, j, lanes);
        if (bias != nullptr) v += load_lanes(bias + n + j, lanes);
        v = F(v);
        if (other != nullptr) v = Join(v, load_lanes(other + row + j, lanes));
        store_lanes(at(m, n) + row + j, v, lanes);
      }
    }
  }

  template <Vec (*F)(Vec), Vec (*Join)(Vec, Vec), class Product>
  void finish_full(const Product& product, int rows, int64_t m, int64_t n, const float* other) const {
    const Vec bias0 = bias == nullptr ? Vec{} : load(bias + n);
    const Vec bias1 = bias == nullptr ? Vec{} : load(bias + n + kWidth);
    float* c = at(m, n);
    for (int r = 0; r < rows; ++r, c += width()) {
      Vec left = F(product(r, 0, kWidth) + bias0), right = F(product(r, kWidth, kWidth) + bias1);
      if (other != nullptr) {
        left = Join(left, load(other + r * width()));
        right = Join(right, load(other + r * width() + kWidth));
      }
      store(c, left);
      store(c + kWidth, right);
    }
  }
};

}  // namespace
