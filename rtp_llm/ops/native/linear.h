// Which kernels multiply by a packed weight, and how they want it packed.
#pragma once
#if defined(__AMX_BF16__)
#include "gemm_grouped_amx.h"
#else
#include "gemm_grouped.h"
#endif

namespace {

#if defined(__AMX_BF16__)
using Linear = LinearTiles;

template <class T>
inline int64_t packed_bytes_of(int64_t N, int64_t K) {
  return ceil_div(N, kPanel) * TiledWeight<T>::panel_numbers(K) * 2;
}
template <class T>
inline void pack_as(const float* w, int64_t N, int64_t K, void* packed) {
  TiledWeight<T>::pack(w, N, K, static_cast<uint16_t*>(packed));
}
#else
using Linear = LinearVectors;

template <class T>
inline int64_t packed_bytes_of(int64_t N, int64_t K) {
  return ceil_div(N, kPanel) * kPanel * ceil_div(K, kNumbersOf<T>) * int64_t(sizeof(T));
}
template <class T>
inline void pack_as(const float* w, int64_t N, int64_t K, void* packed) {
  if constexpr (kNumbersOf<T> == 2) pack_together<2>(w, N, K, static_cast<uint16_t*>(packed));
  else pack_weight(w, N, K, static_cast<T*>(packed));
}
#endif

// Calls `f` with a number of the kind that a weight is packed in, of which so many bf16 parts are multiplied.
template <class F>
inline auto with_packed_kind(bool bf16, int parts, const F& f) {
  if constexpr (kHasPairs) {
    if (parts == 1) return f(Pair{});
  }
  return bf16 ? f(uint16_t{}) : f(float{});
}

inline int64_t packed_bytes(int64_t N, int64_t K, bool bf16, int parts) {
  return with_packed_kind(bf16, parts, [&](auto kind) { return packed_bytes_of<decltype(kind)>(N, K); });
}
inline void pack(const float* w, int64_t N, int64_t K, void* packed, bool bf16, int parts) {
  with_packed_kind(bf16, parts, [&](auto kind) { pack_as<decltype(kind)>(w, N, K, packed); });
}

}  // namespace
