// What an address sanitizer is told of memory that it does not know the bounds of; in all other builds, nothing.
#pragma once
#include <cstddef>
#include <cstdint>
#include <cstring>
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace {

#if defined(__SANITIZE_ADDRESS__)
constexpr bool kIsSanitized = true;
constexpr int64_t kRedZone = 64;  // bytes behind each tensor

inline void forbid(void* start, int64_t bytes) { __asan_poison_memory_region(start, size_t(bytes)); }
inline void allow(void* start, int64_t bytes) { __asan_unpoison_memory_region(start, size_t(bytes)); }
// Of what was never written NaN is made: it shows in whatever is computed with it.
inline void spoil(void* start, int64_t bytes) { std::memset(start, 0xFF, size_t(bytes)); }
#else
constexpr bool kIsSanitized = false;
constexpr int64_t kRedZone = 0;

inline void forbid(void*, int64_t) {}
inline void allow(void*, int64_t) {}
inline void spoil(void*, int64_t) {}
#endif

}  // namespace
