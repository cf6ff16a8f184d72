// softmax(scale q k^T) v, sequence by sequence, straight from the packed q, k, v.
//
// One task is some (sequence, key head), or a run of the query rows of one. On vectors K^T and V of a head are packed
// into panels in thread-local scratch; kRows query rows at a time then have their scores, softmax and output computed
// in cache. Where one bf16 part of each number is multiplied, pairs are (pairs.h). Rows that see many keys are computed
// on tiles where there are some (attention_amx.h). The keys of a sequence with a prefix are those of the prefix, then its
// own; of one whose last tokens are not seen, those before them. A row's bits depend on the keys that it sees: others of
// its tile weigh nothing.
#pragma once
#include <optional>

#if defined(__AMX_BF16__)
#include "attention_amx.h"
#endif
#include "attention_relative.h"

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
    const int64_t sizes = padded * head_dim + length * depth + kRows * (padded + 2 * depth) + room;
    float* keys = thread_scratch().reserve(sizes);
    float *values = keys + padded * head_dim, *scores = values + length * depth, *products = scores + kRows * padded;
    // NOTE: lanes past the last key were set to zero. Their scores are never read, but of whatever else stood there
    // (integers are denormal as fp32) the products can take a hundred times as long.
    if (length < padded) std::fill(values - kPanel * head_dim, values, 0.0f);
    const KeyRows seen = part.keys.part(0, length);
    for (const auto& [rows, first_key] : {std::pair{seen.before, int64_t(0)}, {seen.own, seen.before.count}}) {
      pack_keys(rows, first_key, head_dim, head_dim, keys);
      pack_values(rows.moved(kv_heads * head_dim), head_dim, length, values + first_key * kPanel);
    }
    if constexpr (kNumbersOf<T> == 2) {
      pair_up_rows(keys, padded / kPanel * head_dim, kPanel);
      for (int64_t d = 0; d < depth; d += kPanel) pair_up_rows(values + d * length, length, kPanel);
    }
    const int64_t group = heads / kv_heads;
    for (int64_t h = part.kv_head * group; h < (part.kv_head + 1) * group; ++h) {
      Head head{keys, values, scores, products, padded, length, depth, adjustment.of_head(h), {}};
      if (relative.any())
        head.relative.emplace(relative, h, seen.own, part.place(part.first), part.place(part.last), head_dim,
                              products + 2 * kRows * depth);
      for (int64_t row = part.first; row < part.last; row += kRows) {
        const int rows = int(std::min<int64_t>(kRows, part.last - row));
        const float* q = part.q + row * row_size() + h * head_dim;
        float* y = part.y + (row - part.first) * heads * head_dim + h * head_dim;
        const int rows_after = int(std::min<int64_t>(kRows, part.last - row - rows));
        const Awaited awaited{{y, heads * head_dim, rows}, {q + kRows * row_size(), row_size(), rows_after}};
        attend<T>(head, part.place(row), rows, queries<T>(q, rows, products + kRows * depth, depth), y, awaited);
      }
    }
  }

  struct Head {
    // [padded / kPanel][head_dim][kPanel], [depth / kPanel][length][kPanel]; of pairs the dimension before the last is
    // half as long, but panels of values are as far apart.
    const float *keys, *values;
    float *scores, *products;    // [kRows][padded], [kRows][depth]
    int64_t padded, length, depth;
    Adjustment adjustment;
    std::optional<RelativeHead> relative;
  };

  // Rows of queries, `stride` apart.
  struct Queries {
    const float* data;
    int64_t stride;
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

  // Queries at the places `row` and after of a sequence -> y; awaited are y and the queries after these.
  template <class T>
  void attend(Head& head, int64_t row, int rows, Queries q, float* y, Awaited awaited) const {
    constexpr int64_t kNumbers = kNumbersOf<T>;
    const auto numbers = [](const float* x) { return reinterpret_cast<const T*>(x); };
    const int64_t from = visible(row, head.length).from / kPanel * kPanel;
    const int64_t to = std::max(from, visible(row + rows - 1, head.length).to);
    for (int64_t j = from; j < to; j += kPanel) {
      const int64_t cols = to - j <= kWidth ? kWidth : kPanel;
      const T* k = numbers(head.keys + j * head_dim / kNumbers);
      multiply(rows, cols, head_dim / kNumbers, q.data, q.stride, k, head.scores + j, head.padded, false);
    }
    const Keys keys{from, to};
    if (head.relative) head.relative->add(row, rows, q.data, q.stride, keys, head.scores, head.padded);
    const float by = head.adjustment.factor(), factor = head.adjustment.any() ? 1.0f : by;
    for (int r = 0; head.adjustment.any() && r < rows; ++r)
      head.adjustment.apply(head.scores + r * head.padded, keys, row + r, by);
    float shifts[kRows], inverse[kRows];
    // NOTE: row after row in each of two passes: the second need not wait for the first's last step.
    for (int r = 0; r < rows; ++r)
      shifts[r] = highest(head.scores + r * head.padded, visible(row + r, head.length), keys) * factor;
    for (int r = 0; r < rows; ++r)
      inverse[r] = inverted(
          weigh<T>(head.scores + r * head.padded, visible(row + r, head.length), keys, factor, shifts[r]));
    for (int64_t d = 0; d < head_dim; d += kPanel) {
      const T* v = numbers(head.values + d * head.length + from / kNumbers * kPanel);
      const int64_t cols = head_dim - d > kWidth ? kPanel : kWidth, steps = ceil_div(to - from, kNumbers);
      Ahead ahead;
      ahead.awaited = awaited.moved(d);
      multiply(rows, cols, steps, head.scores + from, head.padded, v, head.products + d, head.depth, false, ahead);
    }
    for (int r = 0; r < rows; ++r, y += heads * head_dim)
      for (int64_t d = 0; d < head_dim; d += kWidth) {
        const int64_t lanes = std::min<int64_t>(kWidth, head_dim - d);
        store_lanes(y + d, load_lanes(head.products + r * head.depth + d, lanes) * inverse[r], lanes);
      }
  }

  Keys visible(int64_t row, int64_t length) const { return visibility.of(row, length); }

  // The highest score of the visible keys, which lie within `keys`.
  float highest(const float* scores, Keys visible, Keys keys) const {
    const Vec none = broadcast(-__builtin_inff());
    Vec highest = none;
    for (int64_t j = keys.from; j < keys.to; j += kWidth)
      highest = larger(highest, visible.select(j, load(scores + j), none));
    return max_lanes(highest);
  }

  // Scores -> exp2(factor score - shift) on the visible keys, 0 elsewhere; or pairs of them, in half the room. Returns
  // the sum of what is multiplied.
  template <class T>
  float weigh(float* scores, Keys visible, Keys keys, float factor, float shift) const {
    const auto weight = [&](int64_t j) {
      return visible.select(j, exp2(load(scores + j) * factor - shift), Vec{});
    };
    Vec sums{};
    if constexpr (kNumbersOf<T> == 2) {
      float* pairs = scores + keys.from;
      for (int64_t j = keys.from; j < keys.to; j += 2 * kWidth, pairs += kWidth) {
        const Vec after = j + kWidth < keys.to ? weight(j + kWidth) : Vec{};  // past the keys no scores were computed
        const Vec pair = neighbours(weight(j), after);
        sums += sum_of_pair(pair);
        store(pairs, pair);
      }
    } else {
      for (int64_t j = keys.from; j < keys.to; j += kWidth) {
        const Vec one = weight(j);
        sums += one;
        store(scores + j, one);
      }
    }
    return sum_lanes(sums);
  }
};

}  // namespace
