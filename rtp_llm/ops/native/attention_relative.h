// What positions say in attention, as DeBERTa's do: to the product of query i with key j it adds q_i . keys[j - i] and
// k_j . queries[i - j], where both tables have a vector for each distance.
//
// Both are products with the vectors of all distances that occur, some rows at a time, of which each row reads a run of
// its own. That of a key goes down a column of the scores: it is turned over, a block of keys at a time.
#pragma once
#include "attention_keys.h"

namespace {

struct Relative {
  const float *keys, *queries;  // [heads][head_dim][2 * reach - 1] by the distance; null: none
  int64_t reach;

  bool any() const { return keys != nullptr || queries != nullptr; }
};

// The vectors of a run of distances as panels [count / kPanel][head_dim][kPanel].
struct Distances {
  float* panels;
  int64_t first, count, head_dim;

  int64_t size() const { return ceil_div(count, kPanel) * kPanel * head_dim; }

  // From a head's table; beyond its ends, what stands there.
  void pack(const float* table, int64_t reach) const {
    for (int64_t column = 0; column < count; column += kPanel)
      for (int64_t d = 0; d < head_dim; ++d) {
        const float* middle = table + d * (2 * reach - 1) + reach - 1;
        float* to = panels + column * head_dim + d * kPanel;
        const int64_t from = first + column;
        if (from > -reach && from + kPanel <= reach) {
          store(to, load(middle + from));
          store(to + kWidth, load(middle + from + kWidth));
        } else {
          for (int lane = 0; lane < kPanel; ++lane)
            to[lane] = middle[std::clamp<int64_t>(from + lane, 1 - reach, reach - 1)];
        }
      }
  }

  // Products of up to kRows rows with the distances `from` to before `to` -> the distance of y's first column.
  int64_t multiply_rows(int rows, const float* x, int64_t x_stride, int64_t from, int64_t to, float* y,
                        int64_t y_stride) const {
    const int64_t start = (from - first) / kPanel * kPanel;
    for (int64_t column = start; column < to - first; column += kPanel) {
      const int64_t cols = to - first - column <= kWidth ? kWidth : kPanel;
      multiply(rows, cols, head_dim, x, x_stride, panels + column * head_dim, y + column - start, y_stride, false);
    }
    return first + start;
  }
};

// Of one head, for queries at the places `first` to before `last` of a sequence with these keys.
class RelativeHead {
 public:
  // Floats of memory that it needs.
  static int64_t room(int64_t num_keys, int64_t num_queries, int64_t head_dim) {
    const int64_t distances = ceil_div(num_keys + num_queries + kFour, kPanel) * kPanel;
    return 2 * distances * head_dim + kRows * stride(num_keys) + ceil_div(num_keys, kPanel) * kPanel * kMostQueries;
  }

  RelativeHead(const Relative& relative, int64_t h, HeadRows keys, int64_t first, int64_t last, int64_t head_dim,
               float* memory)
      : keys_(keys), last_(last), start_(first), end_(first) {
    const int64_t table = h * head_dim * (2 * relative.reach - 1);
    seen_ = {memory, 1 - last, keys.count + last - first - 1, head_dim};
    seeing_ = {memory + seen_.size(), first - keys.count + 1, keys.count + last - first - 1 + kFour, head_dim};
    products_ = seeing_.panels + seeing_.size();
    turned_ = products_ + kRows * stride(keys.count);
    if (relative.keys != nullptr) seen_.pack(relative.keys + table, relative.reach);
    else seen_.count = 0;
    if (relative.queries != nullptr) seeing_.pack(relative.queries + table, relative.reach);
    else seeing_.count = 0;
  }

  // To the scores [rows][padded] of the queries from the place `row` on, block after block, with `keys`.
  void add(int64_t row, int rows, const float* q, int64_t q_stride, Keys keys, float* scores, int64_t padded) {
    if (seeing_.count > 0 && row >= end_) turn(row);
    const int64_t stride = this->stride(keys_.count);
    int64_t lowest = 0;
    if (seen_.count > 0)
      lowest = seen_.multiply_rows(rows, q, q_stride, keys.from - row - rows + 1, keys.to - row, products_, stride);
    for (int r = 0; r < rows; ++r, scores += padded)
      for (int64_t j = keys.from; j < keys.to; j += kWidth) {
        Vec added{};
        if (seen_.count > 0) added = load(products_ + r * stride + j - row - r - lowest);
        if (seeing_.count > 0) added += load(turned_ + place(row + r, j));
        store(scores + j, load(scores + j) + added);
      }
  }

 private:
  // Queries whose products with all keys are held at once; a multiple of kRows and of four.
  static constexpr int64_t kMostQueries = 192, kFour = 4;

  Distances seen_, seeing_;  // what queries see as keys, and what sees keys as queries
  HeadRows keys_;
  int64_t last_, start_, end_, depth_ = 0;  // the queries from start_ to end_ have their products
  float *products_, *turned_;               // [kRows][stride], [keys / kPanel][depth_][kPanel]

  // Of a row of products: for as many distances as some rows have, in whole panels.
  static int64_t stride(int64_t num_keys) {
    return ceil_div(std::max(num_keys, kMostQueries) + kRows + 2 * kPanel, kPanel) * kPanel;
  }

  int64_t place(int64_t row, int64_t key) const {
    return (key / kPanel * depth_ + row - start_) * kPanel + key % kPanel;
  }

  // The products of all keys with the vectors of the queries at `row` and after. Those of a key stand by the distance
  // i - j: rows that are one number shorter than they are stand by the place of the query.
  void turn(int64_t row) {
    start_ = row;
    end_ = std::min(last_, row + kMostQueries);
    depth_ = ceil_div(end_ - row, kFour) * kFour;
    const int64_t stride = this->stride(keys_.count);
    for (int64_t j = 0; j < keys_.count; j += kRows) {
      const int rows = int(std::min<int64_t>(kRows, keys_.count - j));
      const int64_t lowest = seeing_.multiply_rows(rows, keys_.start + j * keys_.stride, keys_.stride,
                                                    row - j - rows + 1, row + depth_ - j, products_, stride);
      pack_keys({products_ + row - j - lowest, rows, stride - 1}, j, depth_, depth_, turned_);
    }
  }
};

}  // namespace
