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
  return ceil_div(N, kPanel) * kPanel * K * int64_t(sizeof(T));
}
template <class T>
inline void pack_as(const float* w, int64_t N, int64_t K, void* packed) {
  pack_weight(w, N, K, static_cast<T*>(packed));
}
#endif

inline int64_t packed_bytes(int64_t N, int64_t K, bool bf16) {
  return bf16 ? packed_bytes_of<uint16_t>(N, K) : packed_bytes_of<float>(N, K);
}
inline void pack(const float* w, int64_t N, int64_t K, void* packed, bool bf16) {
  if (bf16) pack_as<uint16_t>(w, N, K, packed);
  else pack_as<float>(w, N, K, packed);
}

}  // namespace
