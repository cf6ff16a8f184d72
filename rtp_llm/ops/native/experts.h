// A mixture of experts: each row chooses its own, and the rows of an expert are multiplied together.
//
// An expert's rows are copied next to each other, and multiplied as a linear layer's are: the same code, and so the same
// bits beside any other rows. A row's results are added in the order of its experts. So its bits depend on it alone.
#pragma once
#include <cmath>
#include <memory>
#include <mutex>
#include <type_traits>

#include "gemm_int8.h"
#include "linear.h"
#include "rows.h"

namespace {

// Who computes which rows, in one tensor's memory. A pair is a row and one of its `top` experts, which are in ascending
// order.
struct Routing {
  float* memory;
  int64_t rows, experts, top;

  int64_t pairs() const { return rows * top; }
  float* scores() const { return memory; }                        // [rows][experts]
  float* weights() const { return scores() + rows * experts; }    // [rows][top]
  int32_t* chosen() const { return reinterpret_cast<int32_t*>(weights() + pairs()); }  // [rows][top]
  int32_t* places() const { return chosen() + pairs(); }          // of each pair, among all grouped by expert
  int32_t* sources() const { return places() + pairs(); }         // the row of the pair at each place
  int32_t* starts() const { return sources() + pairs(); }         // the place where each expert begins, and the end
};

// The experts of each row, and their probabilities.
struct Route {
  Routing routing;
  const float *x, *router;  // [rows][size], [experts][size]
  int64_t size;
  int64_t block = 0;

  int64_t plan(int threads) { return plan_rows(routing.rows, threads, block); }

  void run(int64_t task) const {
    for (int64_t i = task * block; i < std::min(routing.rows, (task + 1) * block); ++i) route(i);
  }

 private:
  float product(const float* a, const float* b) const {
    Vec sums{};
    for (int64_t j = 0; j < size; j += kWidth) {
      const int64_t lanes = std::min<int64_t>(kWidth, size - j);
      sums += load_lanes(a + j, lanes) * load_lanes(b + j, lanes);
    }
    return sum_lanes(sums);
  }

  void route(int64_t row) const {
    float* scores = routing.scores() + row * routing.experts;
    float largest = -INFINITY;
    for (int64_t e = 0; e < routing.experts; ++e) {
      scores[e] = product(x + row * size, router + e * size);
      largest = std::max(largest, scores[e]);
    }
    double total = 0.0;
    for (int64_t e = 0; e < routing.experts; ++e) total += std::exp(double(scores[e]) - double(largest));
    int64_t found = 0, pair = row * routing.top;
    // NOTE: with NaN among the scores more than `top` experts may have too few before them, but never less.
    for (int64_t e = 0; e < routing.experts && found < routing.top; ++e) {
      if (before(scores, e) >= routing.top) continue;
      routing.chosen()[pair + found] = int32_t(e);
      routing.weights()[pair + found++] = float(std::exp(double(scores[e]) - double(largest)) / total);
    }
  }

  // How many experts a row prefers to this one: of equal ones the first.
  int64_t before(const float* scores, int64_t expert) const {
    int64_t count = 0;
    for (int64_t e = 0; e < routing.experts; ++e)
      count += scores[e] > scores[expert] || (scores[e] == scores[expert] && e < expert);
    return count;
  }
};

// Pairs in the order of their experts, and of their rows.
struct GroupRows {
  Routing routing;

  int64_t plan(int) { return 1; }

  void run(int64_t) const {
    int32_t* starts = routing.starts();
    const int32_t* chosen = routing.chosen();
    std::fill(starts, starts + routing.experts + 1, 0);
    for (int64_t i = 0; i < routing.pairs(); ++i) ++starts[chosen[i] + 1];
    for (int64_t e = 0; e < routing.experts; ++e) starts[e + 1] += starts[e];
    for (int64_t i = 0; i < routing.pairs(); ++i) {
      const int32_t place = starts[chosen[i]]++;  // for a while, where each expert's next pair goes
      routing.places()[i] = place;
      routing.sources()[place] = int32_t(i / routing.top);
    }
    for (int64_t e = routing.experts; e > 0; --e) starts[e] = starts[e - 1];
    starts[0] = 0;
  }
};

// Goes on where a product's `rows`-th row is.
template <class Product>
inline void skip_rows(Product& product, int64_t rows) {
  product.x += rows * product.K;
}
inline void skip_rows(LinearInt8& product, int64_t rows) {
  product.x = static_cast<const char*>(product.x) + rows * quantized_row_bytes(product.K);
}

// `Product` of the rows at each place with the weight of the expert whose place it is.
//
// How many rows an expert has is known when they have been grouped: the first thread to come cuts the products, and
// all take parts of them until none is left, each from an expert of its own on.
template <class Product>
struct ExpertProducts {
  Product whole;           // of all rows, with no weight yet
  const int64_t* weights;  // addresses; 1 more where the weight is bf16
  Routing routing;
  int threads = 1;

  int64_t plan(int most) {
    threads = most;
    work_ = std::make_shared<Work>(routing.experts);
    return threads;
  }

  void run(int64_t task) const {
    std::call_once(work_->cut, [this] { cut(); });
    const int64_t experts = routing.experts, first = task * experts / threads;
    for (int64_t e = 0; e < experts; ++e) {
      Part& part = work_->parts[size_t((first + e) % experts)];
      for (int64_t i; (i = part.taken.fetch_add(1, std::memory_order_relaxed)) < part.tasks;) part.product.run(i);
    }
  }

 private:
  struct Part {
    Product product{};
    int64_t tasks = 0;
    std::atomic<int64_t> taken{0};
  };
  struct Work {
    std::once_flag cut;
    std::vector<Part> parts;
    explicit Work(int64_t experts) : parts(size_t(experts)) {}
  };

  std::shared_ptr<Work> work_;

  void cut() const {
    for (int64_t e = 0; e < routing.experts; ++e) {
      const int64_t start = routing.starts()[e], rows = routing.starts()[e + 1] - start;
      if (rows == 0) continue;
      Part& part = work_->parts[size_t(e)];
      part.product = whole;
      part.product.M = rows;
      part.product.y += start * whole.N;
      skip_rows(part.product, start);
      part.product.weight = reinterpret_cast<const void*>(weights[e] & ~int64_t(1));
      if constexpr (std::is_same_v<Product, Linear>) part.product.weight_is_bf16 = (weights[e] & 1) != 0;
      part.tasks = part.product.plan(threads);
    }
  }
};

// Each row's results times its probabilities, added up, + bias + residual.
struct MixExperts {
  float* y;
  const float *parts, *bias, *residual;  // at their places; bias, residual null: nothing is added
  int64_t size;
  Routing routing;
  int64_t block = 0;

  int64_t plan(int threads) { return plan_rows(routing.rows, threads, block); }

  void run(int64_t task) const {
    for (int64_t i = task * block; i < std::min(routing.rows, (task + 1) * block); ++i)
      for (int64_t j = 0; j < size; j += kWidth) mix(i, j, std::min<int64_t>(kWidth, size - j));
  }

 private:
  void mix(int64_t row, int64_t column, int64_t lanes) const {
    const float* weights = routing.weights() + row * routing.top;
    const int32_t* places = routing.places() + row * routing.top;
    Vec sum{};
    for (int64_t t = 0; t < routing.top; ++t) sum += load_lanes(parts + places[t] * size + column, lanes) * weights[t];
    if (bias != nullptr) sum += load_lanes(bias + column, lanes);
    if (residual != nullptr) sum += load_lanes(residual + row * size + column, lanes);
    store_lanes(y + row * size + column, sum, lanes);
  }
};

}  // namespace
