// softmax(scale q k^T) v, sequence by sequence, straight from the packed q, k, v.
//
// One task is some (sequence, key head), or a run of the query rows of one. K^T and V of a head are packed into panels in
// thread-local scratch; kRows query rows at a time then have their scores, softmax and output computed in cache. The
// keys of a sequence with a prefix are those of the prefix, then its own. A row's bits depend on the keys that it sees:
// others of its tile weigh nothing.
#pragma once
#include "gemm.h"

namespace {

struct Attention {
  float* out;
  const float* qkv;
  const int32_t *cu_seqlens, *prefix_of, *wanted;  // prefix_of null: none; wanted null: all rows
  int64_t num_wanted;  // one row of each of the last sequences
  const float* const* kept;  // of each kept prefix [tokens][2][kv_heads][head_dim], and its tokens
  const int64_t* kept_lens;
  int64_t num_seqs, max_seqlen, heads, kv_heads, head_dim;
  float scale;
  bool causal;
  int64_t window;  // 0: none
  int64_t parts = 1, part_rows = 0, runs = 0, run_length = 1;

  // Enough tasks for every thread, and not many more: a short sequence's head takes less than a hand-over. Parts are
  // whole tiles, so that a row is computed in the same tile for any plan.
  int64_t plan(int threads) {
    const int64_t pairs = (wanted != nullptr ? num_wanted : num_seqs) * kv_heads, tiles = ceil_div(max_seqlen, kRows);
    const int64_t most = wanted != nullptr || threads == 1 ? 1 : std::max<int64_t>(1, tiles / 4);
    parts = std::clamp<int64_t>(ceil_div(4 * threads, pairs), 1, most);
    part_rows = ceil_div(tiles, parts) * kRows;
    runs = pairs * parts;
    run_length = std::max<int64_t>(1, runs / (16 * threads));
    return ceil_div(runs, run_length);
  }

  void run(int64_t task) const {
    for (int64_t i = task * run_length; i < std::min(runs, (task + 1) * run_length); ++i) run_part(i);
  }

 private:
  void run_part(int64_t number) const {
    const int64_t pair = number / parts, kv_head = pair % kv_heads;
    const int64_t seq = pair / kv_heads + (wanted != nullptr ? num_seqs - num_wanted : 0);
    const int64_t start = cu_seqlens[seq], own = cu_seqlens[seq + 1] - start;
    int64_t first = number % parts * part_rows, last = std::min(own, first + part_rows), result = start + first;
    if (wanted != nullptr) {
      result = pair / kv_heads;
      first = wanted[result] - start;
      last = first + 1;
    }
    if (first >= last) return;
    const Rows before = prefix_rows(seq);
    const int64_t length = before.count + own;
    const int64_t padded = ceil_div(length, kPanel) * kPanel, depth = ceil_div(head_dim, kPanel) * kPanel;
    float* keys = thread_scratch().reserve(padded * head_dim + length * depth + kRows * padded);
    float* values = keys + padded * head_dim;
    if (length < padded) std::fill(values - kPanel * head_dim, values, 0.0f);
    for (const auto& [rows, first_key] : {std::pair{before, int64_t(0)}, {own_rows(start, own), before.count}}) {
      const float* source = rows.start + kv_head * head_dim;
      pack_keys({source, rows.count, rows.stride}, first_key, keys);
      pack_values({source + kv_heads * head_dim, rows.count, rows.stride}, values + first_key * kPanel, length);
    }
    Head head{keys, values, values + length * depth, padded, length};
    const int64_t group = heads / kv_heads;
    for (int64_t h = kv_head * group; h < (kv_head + 1) * group; ++h)
      for (int64_t row = first; row < last; row += kRows) {
        const float* q = qkv + (start + row) * row_size() + h * head_dim;
        float* y = out + (result + row - first) * heads * head_dim + h * head_dim;
        attend(head, before.count + row, int(std::min<int64_t>(kRows, last - row)), q, y);
      }
  }

  struct Head {
    const float *keys, *values;  // [padded / kPanel][head_dim][kPanel], [depth / kPanel][length][kPanel]
    float* scores;               // [kRows][padded]
    int64_t padded, length;
  };

  struct Rows {
    const float* start;  // of the key heads; the value heads stand behind them
    int64_t count, stride;
  };

  struct Keys {
    int64_t from, to;

    // x where the lane, j + its place, is among the keys; else `other`.
    Vec select(int64_t j, Vec x, Vec other) const {
      if (j >= from && j + kWidth <= to) return x;
      const VecInt lane = lane_numbers();
      return (lane >= int32_t(from - j)) & (lane < int32_t(to - j)) ? x : other;
    }
  };

  int64_t row_size() const { return (heads + 2 * kv_heads) * head_dim; }
  Rows own_rows(int64_t row, int64_t count) const {
    return {qkv + row * row_size() + heads * head_dim, count, row_size()};
  }

  // What stands before a sequence: rows of this batch, or of an earlier one.
  Rows prefix_rows(int64_t seq) const {
    const int64_t prefix = prefix_of != nullptr ? prefix_of[seq] : -1;
    if (prefix == -1) return {qkv, 0, 0};
    if (prefix < -1) return {kept[-2 - prefix], kept_lens[-2 - prefix], 2 * kv_heads * head_dim};
    return own_rows(cu_seqlens[prefix], cu_seqlens[prefix + 1] - cu_seqlens[prefix]);
  }

  // NOTE: lanes past the last key were set to zero. Their scores are never read, but of whatever else stood there
  // (integers are denormal as fp32) the products can take a hundred times as long.
  void pack_keys(Rows from, int64_t first, float* keys) const {
    for (int64_t j = 0, lanes; j < from.count; j += lanes) {
      const int64_t start = (first + j) % kPanel;
      lanes = std::min<int64_t>(kPanel - start, from.count - j);
      const float* rows = from.start + j * from.stride;
      float* panel = keys + (first + j) / kPanel * head_dim * kPanel + start;
      int64_t lane = 0;
#if defined(__SSE2__)
      for (; lane + 4 <= lanes && head_dim % 4 == 0; lane += 4)
        transpose_four(rows + lane * from.stride, from.stride, panel + lane);
#endif
      for (; lane < lanes; ++lane)
        for (int64_t d = 0; d < head_dim; ++d) panel[d * kPanel + lane] = rows[lane * from.stride + d];
    }
  }

#if defined(__SSE2__)
  void transpose_four(const float* rows, int64_t size, float* keys) const {
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

  void pack_values(Rows from, float* values, int64_t length) const {
    for (int64_t d = 0; d < head_dim; d += kPanel, values += length * kPanel) {
      const int64_t cols = std::min<int64_t>(kPanel, head_dim - d), left = std::min<int64_t>(kWidth, cols);
      for (int64_t j = 0; j < from.count; ++j) {
        const float* row = from.start + j * from.stride + d;
        store(values + j * kPanel, load_lanes(row, left));
        store(values + j * kPanel + kWidth, load_lanes(row + left, cols - left));
      }
    }
  }

  // The keys that a row sees.
  int64_t first_key(int64_t row) const { return window > 0 ? std::max<int64_t>(0, row - window + 1) : 0; }
  int64_t last_key(int64_t row, int64_t length) const {
    if (causal) return row + 1;
    return window > 0 ? std::min(length, row + window) : length;
  }

  // Queries at the places `row` and after of a sequence -> y.
  void attend(const Head& head, int64_t row, int rows, const float* q, float* y) const {
    const int64_t from = first_key(row) / kPanel * kPanel, to = last_key(row + rows - 1, head.length);
    for (int64_t j = from; j < to; j += kPanel) {
      const int64_t cols = to - j <= kWidth ? kWidth : kPanel;
      multiply(rows, cols, head_dim, q, row_size(), head.keys + j * head_dim, head.scores + j, head.padded, false);
    }
    const Keys keys{from, to};
    float shifts[kRows], inverse[kRows];
    // NOTE: row after row in each of two passes: the second need not wait for the first's last step.
    for (int r = 0; r < rows; ++r)
      shifts[r] = highest(head.scores + r * head.padded, visible(row + r, head.length), keys) * factor();
    for (int r = 0; r < rows; ++r)
      inverse[r] = 1.0f / weigh(head.scores + r * head.padded, visible(row + r, head.length), keys, shifts[r]);
    for (int64_t d = 0; d < head_dim; d += kPanel) {
      const float* v = head.values + d * head.length + from * kPanel;
      const int64_t cols = std::min<int64_t>(kPanel, head_dim - d);
      multiply(rows, cols, to - from, head.scores + from, head.padded, v, y + d, heads * head_dim, false);
    }
    for (int r = 0; r < rows; ++r, y += heads * head_dim)
      for (int64_t d = 0; d < head_dim; d += kWidth) {
        const int64_t lanes = std::min<int64_t>(kWidth, head_dim - d);
        store_lanes(y + d, load_lanes(y + d, lanes) * inverse[r], lanes);
      }
  }

  float factor() const { return scale * 1.44269504089f; }
  Keys visible(int64_t row, int64_t length) const { return {first_key(row), last_key(row, length)}; }

  // The highest score of the visible keys, which lie within `keys`.
  float highest(const float* scores, Keys visible, Keys keys) const {
    const Vec none = broadcast(-__builtin_inff());
    Vec highest = none;
    for (int64_t j = keys.from; j < keys.to; j += kWidth)
      highest = larger(highest, visible.select(j, load(scores + j), none));
    return max_lanes(highest);
  }

  // Scores -> exp2(factor score - shift) on the visible keys, 0 elsewhere; returns their sum.
  float weigh(float* scores, Keys visible, Keys keys, float shift) const {
    const float factor = this->factor();
    Vec sums{};
    for (int64_t j = keys.from; j < keys.to; j += kWidth) {
      const Vec weight = visible.select(j, exp2(load(scores + j) * factor - shift), Vec{});
      sums += weight;
      store(scores + j, weight);
    }
    return sum_lanes(sums);
  }
};

}  // namespace
