// The rows of a product's x: in place; or in a form of their own, which a thread makes once for those of a command's
// tasks that share them.
#pragma once
#include <atomic>
#include <cstring>

#include "scratch.h"

namespace {

// A number that no other plan of a command has: what a thread has prepared for one task serves the command's others.
inline int64_t next_stamp() {
  static std::atomic<int64_t> stamps{0};
  return ++stamps;
}

struct Rows {
  const float* data;
  int64_t stride;

  const float* at(int64_t row, int64_t k) const { return data + row * stride + k; }
};

// Rows m0:m1 of what `make(row, to)` makes of each, `stride` numbers apart; `stamp` is the plan's.
template <class Make>
inline Rows made_rows(int64_t m0, int64_t m1, int64_t stride, int64_t stamp, const Make& make) {
  struct Made {
    Scratch scratch;
    int64_t stamp = 0, row = 0;
  };
  thread_local Made made;
  float* data = made.scratch.reserve((m1 - m0) * stride);
  if (made.stamp != stamp || made.row != m0)
    for (int64_t m = m0; m < m1; ++m) make(m, data + (m - m0) * stride);
  made.stamp = stamp;
  made.row = m0;
  return {data, stride};
}

// Rows m0:m1 of x [M, K]; copied where they are whole pages apart and would all fall into the same cache sets.
inline Rows rows_of(const float* x, int64_t K, int64_t m0, int64_t m1, int64_t stamp) {
  constexpr int64_t kNumbersAPage = 1024, kNumbersALine = 16;
  if (K % kNumbersAPage != 0) return {x + m0 * K, K};
  return made_rows(m0, m1, K + kNumbersALine, stamp,
                   [&](int64_t m, float* to) { std::memcpy(to, x + m * K, size_t(K) * 4); });
}

}  // namespace
