// Attention of the query rows of some heads that share keys and values, on AMX tiles, as exact as fp32: queries, keys,
// weights and values are sums of three bf16 (split.h), and each product is six of tiles. Of numbers that were made of
// fewer parts (gemm_amx.h) as few are multiplied; maxima, exponentials and their sums are of fp32 all the same.
//
// Keys are taken kChunk at a time, at fixed places. Their parts and those of their values are made once, for all rows;
// each block of rows then has its scores, weights and weighted values computed in cache. A row's highest score so far,
// rounded up to an integer, is the power of two that its weights are relative to: where it grows, what has been summed
// is scaled without loss. A row's bits depend on the keys that it sees alone.
//
// Vectors weigh the scores of one block while tiles multiply those of the next and the values of the one before.
#pragma once
#include "attention_keys.h"
#include "gemm_amx.h"

namespace {

// Below, vectors are as fast.
constexpr int64_t kLeastTiledDim = 24;
inline int64_t least_tiled_keys(int bf16_parts) { return bf16_parts == 1 ? 96 : 160; }

constexpr int64_t kMostTiledRows = 2048;  // of all heads, whose parts stay in L2

struct TiledQueries {
  const float* start;
  int64_t stride, place, count, heads;  // the place of the first row among the keys; heads stand side by side
};

template <int P>
struct TiledAttention {
  static constexpr int64_t kBlock = kBlockRows;

  TiledQueries queries;
  KeyRows keys, values;
  int64_t head_dim;
  float factor;  // after it, scores are exponents of two
  Visibility visibility;
  float* y;  // [rows][heads][head_dim], rows `y_stride` apart
  int64_t y_stride;

  void run() const {
    const Tiles tiles;
    const Memory memory = reserve();
    std::fill(memory.shifts, memory.shifts + queries.heads * rows(), kLowest);
    for (int64_t i = 0; i < queries.heads * blocks(); ++i)
      split_queries(i / blocks(), i % blocks() * kBlock, memory.query_parts + i * query_numbers());
    const int64_t to = seen(queries.count - 1).to;
    for (int64_t key = seen(0).from / kChunk * kChunk; key < to; key += kChunk) {
      split_keys(memory, key);
      run_chunk(memory, {key, std::min(to, key + kChunk)});
    }
  }

 private:
  // Keys of a chunk, and those of one row that are weighed between tile products.
  static constexpr int64_t kChunk = 256, kPiece = 64;
  static constexpr int64_t kStride = kChunk + kWidth;  // of scores: not a power of two, for the cache's sets
  static constexpr int64_t kValueNumbers = kChunk / kDepth * kSplitStep<P>;  // of a panel of values' parts
  static constexpr float kLowest = -1e30f;

  struct Memory {
    float *shifts, *sums;   // [heads][rows]: what the weights are relative to, and their sum
    float *keys, *values;   // of a chunk, [kChunk / 32][depth][32] and [depth / 32][kChunk][32]
    float *scores[2], *products;
    uint16_t *query_parts, *key_parts, *value_parts, *weight_parts[2];
  };

  // Rows of a head, and the keys of a chunk that some of them see; on its way through `step`.
  struct Block {
    int64_t head, row, rows;
    Keys keys;
    bool first, last;  // of the chunks with such keys
    bool whole;        // every row sees all of the keys
    float *scores, *shifts, *sums;
    uint16_t* weight_parts;
    int64_t weighed_rows, weighed_to;  // whole rows, and keys of the next
    alignas(64) float scales[kBlock], inverse[kBlock];
    Vec row_sums[kBlock];

    int64_t steps() const { return (keys.to - keys.from) / kDepth; }
    int64_t pieces() const { return rows * ceil_div(keys.to - keys.from, kPiece); }
  };

  int64_t depth() const { return ceil_div(head_dim, kDepth) * kDepth; }
  int64_t blocks() const { return ceil_div(queries.count, kBlock); }
  int64_t rows() const { return blocks() * kBlock; }
  int64_t query_numbers() const { return kBlock * depth() * P; }
  Keys seen(int64_t row) const { return visibility.of(queries.place + row, keys.count()); }

  Memory reserve() const {
    const int64_t state = queries.heads * rows(), chunk = kChunk * depth(), scores = kBlock * kStride;
    const int64_t products = kBlock * depth();
    const auto parts = [](int64_t numbers) { return ceil_div(numbers * P, 2); };
    const int64_t weights = parts(kBlock * kChunk), query = parts(state * depth());
    float* at = thread_scratch().reserve(2 * (state + chunk + scores + parts(chunk) + weights) + products + query);
    const auto take = [&](int64_t size) { return std::exchange(at, at + size); };
    const auto take_parts = [&](int64_t size) { return reinterpret_cast<uint16_t*>(take(size)); };
    return {take(state), take(state), take(chunk), take(chunk), {take(scores), take(scores)}, take(products),
            take_parts(query), take_parts(parts(chunk)), take_parts(parts(chunk)),
            {take_parts(weights), take_parts(weights)}};
  }

  void split_queries(int64_t head, int64_t first, uint16_t* to) const {
    const float* q = queries.start + first * queries.stride + head * head_dim;
    for (int64_t row = 0; row < kBlock; ++row, q += queries.stride) {
      uint16_t* tile = to + row / kTileRows * (query_numbers() / 2) + row % kTileRows * kDepth;
      for (int64_t d = 0; d < depth(); d += kDepth, tile += P * kTile) {
        const int64_t left = first + row < queries.count ? head_dim - d : 0;
        const Vec low = load_lanes(q + d, std::clamp<int64_t>(left, 0, kWidth));
        const Vec high = load_lanes(q + d + kWidth, std::clamp<int64_t>(left - kWidth, 0, kWidth));
        store_parts<P>(first_parts<P>(low * factor), first_parts<P>(high * factor), tile, kTile);
      }
    }
  }

  // NOTE: what stands past the last key and the last column weighs nothing, but must be finite.
  void split_keys(const Memory& memory, int64_t key) const {
    const int64_t count = std::min(keys.count() - key, kChunk), panels = ceil_div(count, kPanel);
    if (count < kChunk || depth() > head_dim) std::fill(memory.keys, memory.keys + 2 * kChunk * depth(), 0.0f);
    const KeyRows some_keys = keys.part(key, key + kChunk), some_values = values.part(key, key + kChunk);
    const int64_t before = some_keys.before.count;
    pack_keys(some_keys.before, 0, head_dim, depth(), memory.keys);
    pack_keys(some_keys.own, before, head_dim, depth(), memory.keys);
    pack_values(some_values.before, head_dim, kChunk, memory.values);
    pack_values(some_values.own, head_dim, kChunk, memory.values + before * kPanel);
    split_panels(memory.keys, panels * depth() / kDepth, memory.key_parts);
    for (int64_t d = 0; d < depth(); d += kPanel)
      split_panels(memory.values + d * kChunk, panels, memory.value_parts + d / kPanel * kValueNumbers);
  }

  // Steps of panels, [steps][32][32] -> [steps][P][2 column tiles][16 pairs][16 columns][2]; a pair is k, k + 16.
  static void split_panels(const float* panel, int64_t steps, uint16_t* to) {
    for (int64_t step = 0; step < steps; ++step, panel += kDepth * kPanel, to += kSplitStep<P>)
      for (int64_t pair = 0; pair < kTileRows; ++pair)
        for (int64_t half = 0; half < 2; ++half) {
          const float* from = panel + pair * kPanel + half * kWidth;
          uint16_t* line = to + half * kTile + pair * kDepth;
          store_parts<P>(first_parts<P>(load(from)), first_parts<P>(load(from + kTileRows * kPanel)), line, 2 * kTile);
        }
  }

  // Block after block through three stages: scores, weights, values; and what the tiles made of the values to y.
  void run_chunk(const Memory& memory, Keys chunk) const {
    Block ring[4], *current = nullptr, *before = nullptr, *done = nullptr;
    int64_t i = 0, begun = 0;
    do {
      Block* next = nullptr;
      for (; next == nullptr && i < queries.heads * blocks(); ++i)
        if (begin(memory, i, chunk, begun, ring[begun % 4])) next = &ring[begun++ % 4];
      step(memory, chunk.from, next, current, before, done);
      done = std::exchange(before, std::exchange(current, next));
    } while (current != nullptr || before != nullptr || done != nullptr);
  }

  // False where no row of block `i` sees a key of the chunk; `begun` counts those that do.
  bool begin(const Memory& memory, int64_t i, Keys chunk, int64_t begun, Block& block) const {
    const int64_t row = i % blocks() * kBlock, rows = std::min(kBlock, queries.count - row);
    const Keys all{seen(row).from, seen(row + rows - 1).to};
    const Keys some{std::max(chunk.from, all.from / kPanel * kPanel), std::min(chunk.to, all.to)};
    if (some.from >= some.to) return false;
    block.head = i / blocks();
    block.row = row;
    block.rows = rows;
    block.keys = {some.from, ceil_div(some.to, kPanel) * kPanel};
    block.first = all.from >= chunk.from;
    block.last = all.to <= chunk.to;
    block.whole = seen(row + rows - 1).from <= some.from && seen(row).to >= block.keys.to;
    block.scores = memory.scores[begun % 2];
    block.weight_parts = memory.weight_parts[begun % 2];
    block.shifts = memory.shifts + i * kBlock;
    block.sums = memory.sums + i * kBlock;
    block.weighed_rows = 0;
    block.weighed_to = block.keys.from;
    return true;
  }

  void step(const Memory& memory, int64_t chunk, Block* next, Block* current, Block* before, Block* done) const {
    const int64_t steps = (next ? next->steps() : 0) + (before ? before->steps() : 0);
    const int64_t products = steps * depth() / kDepth * kSplitProducts<P>;
    int64_t due = 0;
    const auto weigh_some = [&] {
      if (current == nullptr) return;
      for (due += current->pieces(); due >= products; due -= products)
        if (current->weighed_rows < current->rows) weigh(*current);
    };
    if (next) score(memory, chunk, *next, weigh_some);
    if (done) finish(*done, memory.products);
    if (before) add_values(memory, chunk, *before, weigh_some);
    if (current) {
      while (current->weighed_rows < current->rows) weigh(*current);
      sum_up(*current);
    }
    if (next) shift(*next);
  }

  template <class F>
  void score(const Memory& memory, int64_t chunk, const Block& block, F&& meanwhile) const {
    const int64_t steps = depth() / kDepth, first = (block.keys.from - chunk) / kPanel;
    const uint16_t* rows = memory.query_parts + (block.head * blocks() + block.row / kBlock) * query_numbers();
    const SplitPanels columns{memory.key_parts + first * steps * kSplitStep<P>, block.steps(), steps * kSplitStep<P>};
    multiply_split<P>(steps, rows, columns, block.scores, kStride, meanwhile);
  }

  // What weights of the rows are relative to, now that the scores of these keys are known.
  void shift(Block& block) const {
    for (int64_t row = 0; row < kBlock; row += kWidth) {
      Vec highest[kWidth];
      for (int r = 0; r < kWidth; ++r) highest[r] = highest_lanes(block, row + r);
      const Vec most = reduce_sixteen(highest, [](Vec a, Vec b) { return larger(a, b); });
      const Vec old = load(block.shifts + row), now = larger(old, Vec(_mm512_ceil_ps(most)));
      store(block.shifts + row, now);
      store(block.scales + row, exp2(old - now));
    }
  }

  Keys seen_of(const Block& block, int64_t row) const { return block.whole ? block.keys : seen(block.row + row); }

  Vec highest_lanes(const Block& block, int64_t row) const {
    const Vec none = broadcast(kLowest);
    const Keys keys = seen_of(block, row);
    const float* scores = block.scores + row * kStride;
    Vec first = none, second = none;
    for (int64_t j = block.keys.from; j < block.keys.to; j += kPanel, scores += kPanel) {
      first = larger(first, keys.select(j, load(scores), none));
      second = larger(second, keys.select(j + kWidth, load(scores + kWidth), none));
    }
    return larger(first, second);
  }

  // The next scores of a row -> the parts of their weights, each cut off, or the nearest where it is one.
  // NOTE: inlined between tile products it would load its constants anew each time, and be a fifth slower.
  __attribute__((noinline)) void weigh(Block& block) const {
    const int64_t row = block.weighed_rows, from = block.weighed_to, offset = from - block.keys.from;
    const int64_t to = std::min(block.keys.to, from + kPiece);
    const Keys keys = seen_of(block, row);
    const float *scores = block.scores + row * kStride + offset, shift = block.shifts[row];
    const int64_t tile = row / kTileRows * block.steps() + offset / kDepth;
    uint16_t* line = block.weight_parts + tile * P * kTile + row % kTileRows * kDepth;
    Vec sum = offset == 0 ? Vec{} : block.row_sums[row];
    for (int64_t j = from; j < to; j += kDepth, scores += kDepth, line += P * kTile) {
      const Vec first = keys.select(j, exp2(load(scores) - shift), Vec{});
      const Vec second = keys.select(j + kWidth, exp2(load(scores + kWidth) - shift), Vec{});
      const Parts one = first_cut_parts<P>(first), two = first_cut_parts<P>(second);
      // Of fewer parts, what they make is summed: weights that are multiplied have a sum of one.
      sum += P == kPlanes ? first + second : sum_of_parts<P>(one) + sum_of_parts<P>(two);
      store_parts<P>(one, two, line, kTile);
    }
    block.row_sums[row] = sum;
    block.weighed_rows += to == block.keys.to;
    block.weighed_to = to == block.keys.to ? block.keys.from : to;
  }

  void sum_up(Block& block) const {
    for (int64_t row = 0; row < kBlock; row += kWidth) {
      Vec sum = reduce_sixteen(block.row_sums + row, [](Vec a, Vec b) { return a + b; });
      if (!block.first) sum += load(block.sums + row) * load(block.scales + row);
      store(block.sums + row, sum);
      store(block.inverse + row, 1.0f / sum);
    }
  }

  template <class F>
  void add_values(const Memory& memory, int64_t chunk, const Block& block, F&& meanwhile) const {
    const int64_t first = (block.keys.from - chunk) / kDepth;
    const SplitPanels columns{memory.value_parts + first * kSplitStep<P>, depth() / kPanel, kValueNumbers};
    multiply_split<P>(block.steps(), block.weight_parts, columns, memory.products, depth(), meanwhile);
  }

  // y += products, each row scaled to what its weights are relative to now; at last, to weights whose sum is one.
  void finish(const Block& block, const float* products) const {
    float* to = y + block.row * y_stride + block.head * head_dim;
    for (int64_t r = 0; r < block.rows; ++r, to += y_stride, products += depth())
      for (int64_t d = 0; d < head_dim; d += kWidth) {
        const int64_t lanes = std::min<int64_t>(kWidth, head_dim - d);
        Vec sum = load(products + d);
        if (!block.first) sum += load_lanes(to + d, lanes) * block.scales[r];
        if (block.last) sum *= block.inverse[r];
        store_lanes(to + d, sum, lanes);
      }
  }
};

}  // namespace
