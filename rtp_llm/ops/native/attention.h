// softmax(scale q k^T) v, sequence by sequence, straight from the packed q, k, v.
//
// One task is some (sequence, key head), or a run of the query rows of one. On vectors K^T and V of a head are packed
// into panels in thread-local scratch; kRows query rows at a time then have their scores, weights (attention_weights.h)
// and output computed in cache. Where one bf16 part of each number is multiplied, pairs are (pairs.h). Rows that see many
// keys are computed on tiles where there are some (attention_amx.h). The keys of a sequence with a prefix are those of the
// prefix, then its own; of one whose last tokens are not seen, those before them. A row's bits depend on the keys that it
// sees: others of its tile weigh nothing.
#pragma once
#include <optional>

#if defined(__AMX_BF16__)
#include "attention_amx.h"
#endif
#include "attention_relative.h"
#include "attention_weights.h"

namespace {

struct Attention {
  float* out;
  const float* qkv;
  const int32_t *cu_seqlens, *prefix_of, *seen_lens, *wanted;  // null: no prefix; all are seen; all rows
  int64_t num_wanted;  // one row of each of the last sequences
  const float* const* kept;  // of each kept prefix [tokens][2][kv_heads][head_dim], and its tokens
  const int64_t* kept_lens;
  int64_t num_seqs, max_seqlen, heads, kv_heads, head_dim;
  Visibility visibility;
  Adjustment adjustment;
  Relative relative;
  int bf16_parts;  // of each number that are multiplied
  int64_t parts = 1, part_rows = 0, runs = 0, run_length = 1;

  // Enough tasks for every thread, and not many more: a short sequence's head takes less than a hand-over. Parts are
  // whole blocks of rows.
  int64_t plan(int threads) {
    const int64_t pairs = (wanted != nullptr ? num_wanted : num_seqs) * kv_heads;
    const int64_t block = first_tiled(max_seqlen) < max_seqlen ? kTiledRows : kRows;
    const int64_t blocks = ceil_div(max_seqlen, block);
    const int64_t most = wanted != nullptr || threads == 1 ? 1 : std::max<int64_t>(1, max_seqlen / (4 * kRows));
    parts = std::clamp<int64_t>(ceil_div(4 * threads, pairs), 1, most);
    part_rows = ceil_div(blocks, parts) * block;
    runs = pairs * parts;
    run_length = std::max<int64_t>(1, runs / (16 * threads));
    return ceil_div(runs, run_length);
  }

  void run(int64_t task) const {
    for (int64_t i = task * run_length; i < std::min(runs, (task + 1) * run_length); ++i) run_part(i);
  }

 private:
#if defined(__AMX_BF16__)
  static constexpr int64_t kTiledRows = kBlockRows;
#else
  static constexpr int64_t kTiledRows = kRows;
#endif

  // Query rows `first` to `last` of a sequence and a key head, and where their results go.
  struct Part {
    int64_t first, last, kv_head;
    const float* q;  // of row 0 and head 0
    float* y;        // of row `first` and head 0
    KeyRows keys;

    int64_t place(int64_t row) const { return keys.before.count + row; }
  };

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
    const int64_t seen = seen_lens != nullptr ? seen_lens[seq] : own;
    const KeyRows keys = KeyRows{prefix_rows(seq), own_rows(start, seen)}.moved(kv_head * head_dim);
    Part part{first, last, kv_head, qkv + start * row_size(), out + result * heads * head_dim, keys};
    // NOTE: on tiles every row sees some key; one that is not seen itself may see none.
    if (seen == own) part.last = std::clamp(first_tiled(keys.count()) - keys.before.count, first, last);
    if (part.first < part.last) takes_pairs() ? run_vectors<Pair>(part) : run_vectors<float>(part);
#if defined(__AMX_BF16__)
    part.y += (part.last - first) * heads * head_dim;
    part.first = part.last;
    part.last = last;
    if (part.first < part.last) run_tiles(part);
#endif
  }

  // The place from which on the rows of a sequence of `length` are computed on tiles: by what they see alone.
  int64_t first_tiled(int64_t length) const {
#if defined(__AMX_BF16__)
    const int64_t least = least_tiled_keys(bf16_parts);
    const int64_t window = visibility.window > 0 ? visibility.window : length;
    // NOTE: the tiles know of no caps and no distances: what has some is computed on vectors, whatever its length.
    if (head_dim < kLeastTiledDim || adjustment.any() || relative.any()) return length;
    if (visibility.causal) return visibility.window > 0 && window < least ? length : least - 1;
    return std::min(length, 2 * window - 1) < least ? length : 0;
#else
    return length;
#endif
  }

#if defined(__AMX_BF16__)
  void run_tiles(const Part& part) const {
    if (bf16_parts == 3) run_tiles<3>(part);
    else if (bf16_parts == 2) run_tiles<2>(part);
    else run_tiles<1>(part);
  }

  template <int P>
  void run_tiles(const Part& part) const {
    const int64_t group = heads / kv_heads, head = part.kv_head * group;
    const int64_t some = ceil_div(kMostTiledRows / group, kTiledRows) * kTiledRows;
    for (int64_t row = part.first; row < part.last; row += some) {
      const TiledQueries queries{part.q + row * row_size() + head * head_dim, row_size(), part.place(row),
                                 std::min(some, part.last - row), group};
      float* y = part.y + (row - part.first) * heads * head_dim + head * head_dim;
      TiledAttention<P>{queries, part.keys, part.keys.moved(kv_heads * head_dim), head_dim, adjustment.factor(),
                        visibility, y, heads * head_dim}.run();
    }
  }
#endif

  // NOTE: distances of DeBERTa's kind are multiplied with rows of queries, and so those are fp32.
  bool takes_pairs() const { return in_pairs(bf16_parts) && head_dim % 2 == 0 && !relative.any(); }

  template <class T>
  void run_vectors(const Part& part) const {
    const int64_t length = std::min(part.keys.count(), visibility.causal ? part.place(part.last) : part.keys.count());
    const int64_t padded = ceil_div(length, kPanel) * kPanel, depth = ceil_div(head_dim, kPanel) * kPanel;
    const int64_t room = relative.any() ? RelativeHead::room(length, part.last - part.first, head_dim) : 0;
    const int64_t sizes = padded * head_dim + length * depth + 2 * kRows * (padded + depth) + room;
    float* keys = thread_scratch().reserve(sizes);
    float *values = keys + padded * head_dim, *scores = values + length * depth, *products = scores + kRows * padded;
    float* const plain = products + 2 * kRows * depth;
    const bool may_be_plain = !adjustment.any() && !relative.any();
    const KeyRows seen = part.keys.part(0, length);
    pack<T>(seen, length, keys, values);
    const int64_t group = heads / kv_heads;
    for (int64_t h = part.kv_head * group; h < (part.kv_head + 1) * group; ++h) {
      Head head{keys, values, scores, plain, products, padded, length, depth, adjustment.of_head(h), may_be_plain,
                may_be_plain, {}};
      if (relative.any())
        head.relative.emplace(relative, h, seen.own, part.place(part.first), part.place(part.last), head_dim,
                              plain + kRows * padded);
      for (int64_t row = part.first; row < part.last; row += kRows) {
        const int rows = int(std::min<int64_t>(kRows, part.last - row));
        const float* q = part.q + row * row_size() + h * head_dim;
        float* y = part.y + (row - part.first) * heads * head_dim + h * head_dim;
        const int rows_after = int(std::min<int64_t>(kRows, part.last - row - rows));
        const Awaited awaited{{y, heads * head_dim, rows}, {q + kRows * row_size(), row_size(), rows_after}};
        attend<T>(head, {part.place(row), rows, queries<T>(q, rows, products + kRows * depth, depth)}, y, awaited);
      }
    }
  }

  // Of `length` keys, into panels as `Head` has them.
  template <class T>
  void pack(const KeyRows& seen, int64_t length, float* keys, float* values) const {
    const int64_t padded = ceil_div(length, kPanel) * kPanel, depth = ceil_div(head_dim, kPanel) * kPanel;
    // NOTE: lanes past the last key were set to zero. Their scores are never read, but of whatever else stood there
    // (integers are denormal as fp32) the products can take a hundred times as long.
    float* const end = keys + padded * head_dim;
    if (length < padded) std::fill(end - kPanel * head_dim, end, 0.0f);
    for (const auto& [rows, first_key] : {std::pair{seen.before, int64_t(0)}, {seen.own, seen.before.count}}) {
      pack_keys(rows, first_key, head_dim, head_dim, keys);
      pack_values(rows.moved(kv_heads * head_dim), head_dim, length, values + first_key * kPanel);
    }
    if constexpr (kNumbersOf<T> == 2) {
      pair_up_rows(keys, padded / kPanel * head_dim, kPanel);
      for (int64_t d = 0; d < depth; d += kPanel) pair_up_rows(values + d * length, length, kPanel);
    }
  }

  struct Head {
    // [padded / kPanel][head_dim][kPanel], [depth / kPanel][length][kPanel]; of pairs the dimension before the last is
    // half as long, but panels of values are as far apart.
    const float *keys, *values;
    float *scores, *plain_weights, *products;  // [kRows][padded] of each, [2][kRows][depth]
    int64_t padded, length, depth;
    Adjustment adjustment;
    bool may_be_plain, plain;  // weights; the second: some of the last block were, and so they are tried first
    std::optional<RelativeHead> relative;
  };

  // Rows of queries, `stride` apart.
  struct Queries {
    const float* data;
    int64_t stride;
  };

  // Some rows, and the place of the first.
  struct Block {
    int64_t place;
    int rows;
    Queries q;
  };

  // In pairs; or in place; or copied, where rows that are whole pages apart would all fall into the same cache sets.
  template <class T>
  Queries queries(const float* q, int rows, float* copy, int64_t stride) const {
    if (kNumbersOf<T> == 1 && row_size() % 1024 != 0) return {q, row_size()};
    for (int r = 0; r < rows; ++r) {
      if (kNumbersOf<T> == 2) pair_row(q + r * row_size(), head_dim, copy + r * stride);
      else std::memcpy(copy + r * stride, q + r * row_size(), size_t(head_dim) * 4);
    }
    return {copy, stride};
  }

  int64_t row_size() const { return (heads + 2 * kv_heads) * head_dim; }
  HeadRows own_rows(int64_t row, int64_t count) const {
    return {qkv + row * row_size() + heads * head_dim, count, row_size()};
  }

  // What stands before a sequence: rows of this batch, or of an earlier one.
  HeadRows prefix_rows(int64_t seq) const {
    const int64_t prefix = prefix_of != nullptr ? prefix_of[seq] : -1;
    if (prefix == -1) return {qkv, 0, 0};
    if (prefix < -1) return {kept[-2 - prefix], kept_lens[-2 - prefix], 2 * kv_heads * head_dim};
    return own_rows(cu_seqlens[prefix], cu_seqlens[prefix + 1] - cu_seqlens[prefix]);
  }

  template <class T>
  static const T* numbers(const float* x) {
    return reinterpret_cast<const T*>(x);
  }

  template <class T>
  const T* panel_of(const Head& head, int64_t j) const {
    return numbers<T>(head.keys + j * head_dim / kNumbersOf<T>);
  }

  // Scores of a block with the panel of keys at j, of which those before `to` count.
  template <class T>
  void score(const Head& head, const Block& block, int64_t j, int64_t to, float* scores) const {
    const int64_t cols = to - j <= kWidth ? kWidth : kPanel;
    multiply(block.rows, cols, head_dim / kNumbersOf<T>, block.q.data, block.q.stride, panel_of<T>(head, j), scores + j,
             head.padded, false);
  }

  // A block's queries -> y; awaited are y and the queries after these.
  template <class T>
  void attend(Head& head, const Block& block, float* y, Awaited awaited) const {
    constexpr int64_t kNumbers = kNumbersOf<T>;
    const int64_t from = visible(block.place, head.length).from / kPanel * kPanel;
    const Keys keys{from, std::max(from, visible(block.place + block.rows - 1, head.length).to)};
    float sums[kRows], inverse[kRows];
    const bool all_plain = head.plain && weigh_plainly<T>(head, block, keys, sums);
    if (!all_plain) weigh<T>(head, block, keys, sums);
    const float* weights = (all_plain ? head.plain_weights : head.scores) + from;
    for (int r = 0; r < block.rows; ++r) inverse[r] = inverted(sums[r]);
    for (int64_t d = 0; d < head_dim; d += kPanel) {
      const T* v = numbers<T>(head.values + d * head.length + from / kNumbers * kPanel);
      const int64_t cols = head_dim - d > kWidth ? kPanel : kWidth, steps = ceil_div(keys.to - from, kNumbers);
      Ahead ahead;
      ahead.awaited = awaited.moved(d);
      multiply(block.rows, cols, steps, weights, head.padded, v, head.products + d, head.depth, false, ahead);
    }
    for (int r = 0; r < block.rows; ++r, y += heads * head_dim)
      for (int64_t d = 0; d < head_dim; d += kWidth) {
        const int64_t lanes = std::min<int64_t>(kWidth, head_dim - d);
        store_lanes(y + d, load_lanes(head.products + r * head.depth + d, lanes) * inverse[r], lanes);
      }
  }

  // Plain weights and each row's sum; false where some row cannot have them. A panel that every row sees whole is weighed
  // in registers.
  template <class T>
  bool weigh_plainly(const Head& head, const Block& block, Keys keys, float* sums) const {
    const Keys first = visible(block.place, head.length), last = visible(block.place + block.rows - 1, head.length);
    const float factor = head.adjustment.factor();
    float *const scores = head.plain_weights, *weights = scores + keys.from;
    Vec lanes[kRows] = {};
    for (int64_t j = keys.from; j < keys.to; j += kPanel, weights += kPanel / kNumbersOf<T>) {
      if (last.from <= j && j + kPanel <= first.to) {
        weighing_tile_of<T>(block.rows, std::make_index_sequence<size_t(kRows)>{})(
            head_dim / kNumbersOf<T>, block.q.data, block.q.stride, panel_of<T>(head, j), factor, weights, head.padded,
            lanes);
        continue;
      }
      score<T>(head, block, j, keys.to, scores);
      for (int r = 0; r < block.rows; ++r)
        lanes[r] = weigh_some<T>(scores + r * head.padded, weights + r * head.padded,
                                 {j, std::min(keys.to, j + kPanel)}, visible(block.place + r, head.length), lanes[r],
                                 plainly<T>(factor));
    }
    bool all = true;
    for (int r = 0; r < block.rows; ++r) all &= is_plain(sums[r] = sum_lanes(lanes[r]));
    return all;
  }

  // Each row's weights in the place of its scores, and their sum: plain ones, with the same bits, where it can have them.
  template <class T>
  __attribute__((noinline)) void weigh(Head& head, const Block& block, Keys keys, float* sums) const {
    for (int64_t j = keys.from; j < keys.to; j += kPanel) score<T>(head, block, j, keys.to, head.scores);
    if (head.relative)
      head.relative->add(block.place, block.rows, block.q.data, block.q.stride, keys, head.scores, head.padded);
    const float by = head.adjustment.factor(), factor = head.adjustment.any() ? 1.0f : by;
    head.plain = false;
    for (int r = 0; r < block.rows; ++r) {
      float *scores = head.scores + r * head.padded, *weights = scores + keys.from;
      const Keys seen = visible(block.place + r, head.length);
      if (head.adjustment.any()) head.adjustment.apply(scores, keys, block.place + r, by);
      const float shift = highest_of(scores, seen, keys) * factor;
      const auto relatively = [&](Vec x) { return exp2(x * factor - shift); };
      if (head.may_be_plain && shift <= kHighestPlainScore) {
        sums[r] = sum_lanes(weigh_some<T>(scores, head.plain_weights, keys, seen, Vec{}, plainly<T>(factor)));
        if (is_plain(sums[r])) {
          std::memcpy(weights, head.plain_weights, size_t(ceil_div(keys.to - keys.from, kNumbersOf<T>)) * 4);
          head.plain = true;
          continue;
        }
      }
      sums[r] = sum_lanes(weigh_some<T>(scores, weights, keys, seen, Vec{}, relatively));
    }
  }

  // What makes a plain weight of a score.
  template <class T>
  static auto plainly(float factor) {
    return [factor](Vec x) {
      plain_weights<T>(&x, factor, std::index_sequence<0>{});
      return x;
    };
  }

  Keys visible(int64_t row, int64_t length) const { return visibility.of(row, length); }
};

}  // namespace
