// Ops row by row: rotary positions with the norms of query and key heads, activations, and those of gates.
#pragma once
#include "rows.h"

namespace {

struct Rotary {
  float* qkv;            // in place
  const float* cos_sin;  // [rows][head_dim]: cosines, then sines
  int64_t rows, heads, kv_heads, head_dim;
  NormWeights q_norm, k_norm;
  int64_t block = 0;

  int64_t plan(int threads) { return plan_rows(rows, threads, block); }

  void run(int64_t task) const {
    for (int64_t i = task * block; i < std::min(rows, (task + 1) * block); ++i)
      for (int64_t h = 0; h < heads + kv_heads; ++h)
        turn(qkv + (i * (heads + 2 * kv_heads) + h) * head_dim, cos_sin + i * head_dim, h < heads ? q_norm : k_norm);
  }

 private:
  void turn(float* x, const float* cos, const NormWeights& norm) const {
    if (norm.weight != nullptr) norm.apply(x, x, head_dim);
    const int64_t half = head_dim / 2;
    for (int64_t j = 0; j < half; j += kWidth) {
      const int64_t lanes = std::min<int64_t>(kWidth, half - j);
      const Vec first = load_lanes(x + j, lanes), second = load_lanes(x + half + j, lanes);
      const Vec c = load_lanes(cos + j, lanes), s = load_lanes(cos + half + j, lanes);
      store_lanes(x + j, first * c - second * s, lanes);
      store_lanes(x + half + j, second * c + first * s, lanes);
    }
  }
};

struct Activate {
  float* x;  // in place
  int64_t rows, size;
  int activation;
  int64_t block = 0;

  int64_t plan(int threads) { return plan_rows(rows, threads, block); }

  void run(int64_t task) const {
    with_activation(activation, [&](auto function) { run_with<decltype(function)::value>(task); });
  }

 private:
  template <Vec (*F)(Vec)>
  void run_with(int64_t task) const {
    const int64_t end = std::min(rows, (task + 1) * block) * size;
    for (int64_t j = task * block * size; j < end; j += kWidth) {
      const int64_t lanes = std::min<int64_t>(kWidth, end - j);
      store_lanes(x + j, F(load_lanes(x + j, lanes)), lanes);
    }
  }
};

struct Gated {
  float* y;
  const float* x;  // [rows][2 * size]: gate, up
  int64_t rows, size;
  int activation;
  int64_t block = 0;

  int64_t plan(int threads) { return plan_rows(rows, threads, block); }

  void run(int64_t task) const {
    with_activation(activation, [&](auto function) { run_with<decltype(function)::value>(task); });
  }

 private:
  template <Vec (*F)(Vec)>
  void run_with(int64_t task) const {
    for (int64_t i = task * block; i < std::min(rows, (task + 1) * block); ++i) {
      const float *gate = x + i * 2 * size, *up = gate + size;
      for (int64_t j = 0; j < size; j += kWidth) {
        const int64_t lanes = std::min<int64_t>(kWidth, size - j);
        store_lanes(y + i * size + j, F(load_lanes(gate + j, lanes)) * load_lanes(up + j, lanes), lanes);
      }
    }
  }
};

}  // namespace
