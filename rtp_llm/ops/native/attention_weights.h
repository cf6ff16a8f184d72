// What makes weights of attention's scores, on vectors.
//
// A row's weights are two to its scores, relative to its highest one. But mostly no score is far from 0, and a constant
// does as well: then the highest is not looked for, and weights are made of sums that are still in registers. What such
// plain weights add up to says whether they could be taken, row by row: by what the row itself sees.
#pragma once
#include "attention_keys.h"

namespace {

// Plain weights are 2^(score - 40). Their sum is at most 1, so that values are not driven beyond fp32; and no less than
// 2^-80, so that what they lose below 2^-126 is nothing beside it. Of MiniLM's rows 13 in a thousand have other sums.
// With values below 1e-20 bits are lost gradually.
constexpr float kLeastPlainSum = 0x1p-80f, kMostPlainSum = 1.0f;
constexpr float kHighestPlainScore = 40.1f;  // a higher one alone is too much

inline bool is_plain(float sum) { return sum >= kLeastPlainSum && sum <= kMostPlainSum; }

// Products, times `factor` exponents of two, -> plain weights, of vectors side by side. Exponents are not rounded: the
// relative error is 8e-8, or 3e-6 of what is rounded to bf16.
template <class T, size_t... I>
inline __attribute__((always_inline)) void plain_weights(Vec* x, float factor, std::index_sequence<I...>) {
  constexpr float kScale = 0x1p-40f, kCoarse[] = {1.0f, 0.69312417507f, 0.24024099112f, 0.05590642616f, 0.00958285294f};
  constexpr bool kRounded = kNumbersOf<T> == 2;
  constexpr int kDegree = kRounded ? 4 : 6;
  const auto coefficient = [&](int k) { return (kRounded ? kCoarse[k] : kExp2[k]) * kScale; };
#if !defined(__AVX512F__)
  ((x[I] = at_most(100.0f / factor, at_least(-86.0f / factor, x[I]))), ...);  // their powers have exponents
#endif
  const Vec by = broadcast(factor);
  const Vec nearest[] = {integers(x[I] * by)...};
  ((x[I] = product_less(x[I], by, value_of(nearest[I]))), ...);
  Vec power[] = {broadcast((void(I), coefficient(kDegree)))...};
  for (int k = kDegree - 1; k >= 0; --k) ((power[I] = power[I] * x[I] + coefficient(k)), ...);
  ((x[I] = times_two_to(power[I], nearest[I])), ...);
}

// Two neighbouring vectors of a row's weights, or their pairs in the room of one; added to the row's sums is what is
// multiplied.
template <class T>
inline __attribute__((always_inline)) Vec store_weights(Vec first, Vec after, float* to, Vec sums) {
  if constexpr (kNumbersOf<T> == 2) {
    const Vec pairs = neighbours(first, after);
    store(to, pairs);
    return sums + sum_of_pair(pairs);
  } else {
    store(to, first);
    store(to + kWidth, after);
    return sums + first + after;
  }
}

// The rows from `First` on, two at a time: one waits for the other's steps.
template <class T, int R, int First = 0>
inline __attribute__((always_inline)) void weigh_rows(Vec* scores, float factor, float* weights, int64_t stride,
                                                      Vec* sums) {
  if constexpr (First < R) {
    constexpr bool kTwo = First + 1 < R;
    Vec* own = scores + 2 * First;
    plain_weights<T>(own, factor, std::make_index_sequence<kTwo ? 4 : 2>{});
    sums[First] = store_weights<T>(own[0], own[1], weights + First * stride, sums[First]);
    if constexpr (kTwo)
      sums[First + 1] = store_weights<T>(own[2], own[3], weights + (First + 1) * stride, sums[First + 1]);
    weigh_rows<T, R, First + 2>(scores, factor, weights, stride, sums);
  }
}

// The plain weights of R rows q [R, K] on a panel of keys [K, kPanel], and added to the rows' sums.
template <int R, class T>
void weighing_tile(int64_t K, const float* q, int64_t q_stride, const T* keys, float factor, float* weights,
                   int64_t stride, Vec* sums) {
  Vec scores[2 * R] = {};
  add_products<R, 2, 0>(scores, K, q, q_stride, keys, Ahead{});
  weigh_rows<T, R>(scores, factor, weights, stride, sums);
}

template <class T>
using WeighingTile = void (*)(int64_t, const float*, int64_t, const T*, float, float*, int64_t, Vec*);

template <class T, size_t... R>
constexpr WeighingTile<T> weighing_tile_of(int rows, std::index_sequence<R...>) {
  constexpr WeighingTile<T> tiles[] = {weighing_tile<int(R) + 1, T>...};
  return tiles[rows - 1];
}

// Scores -> weights on the visible keys, 0 elsewhere, or pairs of them in half the room. Returns the sums, with what is
// multiplied added.
template <class T, class F>
inline Vec weigh_some(const float* scores, float* weights, Keys keys, Keys visible, Vec sums, const F& weight) {
  const auto at = [&](int64_t j) {
    return j < keys.to ? visible.select(j, weight(load(scores + j)), Vec{}) : Vec{};  // no score was computed past them
  };
  for (int64_t j = keys.from; j < keys.to; j += kNumbersOf<T> * kWidth, weights += kWidth) {
    if constexpr (kNumbersOf<T> == 2) {
      const Vec first = at(j);
      const Vec pairs = neighbours(first, at(j + kWidth));
      store(weights, pairs);
      sums += sum_of_pair(pairs);
    } else {
      const Vec one = at(j);
      store(weights, one);
      sums += one;
    }
  }
  return sums;
}

// The highest score of the visible keys, which lie within `keys`.
inline float highest_of(const float* scores, Keys visible, Keys keys) {
  const Vec none = broadcast(-__builtin_inff());
  Vec highest = none;
  for (int64_t j = keys.from; j < keys.to; j += kWidth)
    highest = larger(highest, visible.select(j, load(scores + j), none));
  return max_lanes(highest);
}

}  // namespace
