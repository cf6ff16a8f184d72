// The C ABI of the kernels, compiled once per instruction set and loaded by ctypes.
//
// rtp_run and rtp_pack_weight do the work, without Python's lock. Shapes and index ranges are checked by the caller.
#if defined(__x86_64__)
#include <cpuid.h>
#endif
#if defined(__linux__) && defined(__x86_64__)
#include <sys/syscall.h>
#include <unistd.h>
#elif defined(__linux__) && defined(__aarch64__)
#include <sys/auxv.h>
#endif

#include "peak.h"
#include "program.h"
#include "threads.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT int rtp_abi_version() { return 24; }

EXPORT int rtp_cpu_supports_avx2() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
  return 0;
#endif
}

EXPORT int rtp_cpu_supports_avx2_vnni() {
#if defined(__x86_64__)
  constexpr unsigned kAvxVnni = 1u << 4;
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax & kAvxVnni) != 0 && rtp_cpu_supports_avx2();
#else
  return 0;
#endif
}

EXPORT int rtp_cpu_supports_avx512() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") && rtp_cpu_supports_avx2();
#else
  return 0;
#endif
}

EXPORT int rtp_cpu_supports_avx512_vnni() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512vnni") && rtp_cpu_supports_avx512();
#else
  return 0;
#endif
}

EXPORT int rtp_cpu_supports_avx512_bf16() {
#if defined(__x86_64__)
  // NOTE: not __builtin_cpu_supports: compilers that do not know the name (GCC before 10) would refuse every kernel.
  constexpr unsigned kBf16 = 1u << 5;
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax & kBf16) != 0 && rtp_cpu_supports_avx512_vnni();
#else
  return 0;
#endif
}

// Tiles with bf16 and int8 products, where the kernel lets this process use them: it asks, which holds for all threads.
EXPORT int rtp_cpu_supports_amx() {
#if defined(__linux__) && defined(__x86_64__)
  constexpr unsigned kBf16 = 1u << 22, kTiles = 1u << 24, kInt8 = 1u << 25;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // arch_prctl's, of Linux 5.16
  unsigned eax, ebx, ecx, edx;
  if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx)) return 0;
  constexpr unsigned kAll = kBf16 | kTiles | kInt8;
  return (edx & kAll) == kAll && rtp_cpu_supports_avx512_vnni() &&
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return 0;
#endif
}

EXPORT int rtp_cpu_supports_neon_dotprod() {
#if defined(__linux__) && defined(__aarch64__)
  constexpr unsigned long kDotProducts = 1ul << 20;
  return (getauxval(AT_HWCAP) & kDotProducts) != 0;
#else
  return 0;
#endif
}

EXPORT int rtp_cpu_supports_neon_bf16() {
#if defined(__linux__) && defined(__aarch64__)
  constexpr unsigned long kBf16 = 1ul << 14;
  return (getauxval(AT_HWCAP2) & kBf16) != 0 && rtp_cpu_supports_neon_dotprod();
#else
  return 0;
#endif
}

EXPORT int rtp_num_cores() { return available_cores(); }

EXPORT int rtp_is_bf16(const float* x, int64_t n) { return is_bf16(x, n); }
EXPORT void rtp_narrow(const float* x, int64_t n, uint16_t* y) {
  for (int64_t i = 0; i < n; ++i) narrow(x[i], y + i);
}
EXPORT int64_t rtp_packed_bytes(int64_t N, int64_t K, int bf16, int parts) {
  return packed_bytes(N, K, bf16 != 0, parts);
}
EXPORT void rtp_pack_weight(const float* w, int64_t N, int64_t K, void* packed, int bf16, int parts) {
  pack(w, N, K, packed, bf16 != 0, parts);
}

EXPORT int64_t rtp_grouped_weight_bytes(int64_t N, int64_t K, int bits) {
  return bits == 8 ? GroupedWeight<8>{N, K}.bytes() : GroupedWeight<4>{N, K}.bytes();
}
EXPORT void rtp_pack_grouped(const float* w, int64_t N, int64_t K, void* packed, int bits) {
  if (bits == 8) GroupedWeight<8>{N, K}.pack(w, packed);
  else GroupedWeight<4>{N, K}.pack(w, packed);
}

EXPORT int64_t rtp_int8_weight_bytes(int64_t N, int64_t K) { return Int8Weight{N, K}.bytes(); }
EXPORT void rtp_pack_int8(const float* w, int64_t N, int64_t K, void* packed) { Int8Weight{N, K}.pack(w, packed); }
EXPORT void rtp_pack_quantized(const int8_t* q, const float* scales, int64_t N, int64_t K, void* packed) {
  Int8Weight{N, K}.pack_quantized(q, scales, packed);
}
EXPORT int64_t rtp_quantized_row_bytes(int64_t K) { return quantized_row_bytes(K); }

EXPORT Stream* rtp_stream_new() { return new (std::nothrow) Stream; }
EXPORT void rtp_stream_delete(Stream* stream) { delete stream; }
EXPORT int64_t rtp_arena_capacity(Stream* stream) { return stream->capacity(); }
EXPORT int rtp_max_lookups() { return kMaxLookups; }

// Runs a program on up to `threads` cores; false, and everything is dropped, when it does not fit into memory. A program
// that these kernels cannot read ends the process.
EXPORT int rtp_run(Stream* stream, const char* words, int64_t num_words, int threads) noexcept {
  try {
    Program::load(*stream, words, num_words);
    the_threads().run(*stream, threads);
    return true;
  } catch (const std::bad_alloc&) {
    stream->reset();
    return false;
  }
}

// GFLOP/s on the calling thread, the best slice of about a millisecond: of multiply-adds between vector registers, and of
// bf16 tile products with their loads (0 where the kernels have no tiles).
EXPORT double rtp_peak(double seconds) { return vector_peak(seconds); }
EXPORT double rtp_tile_peak(double seconds) { return tile_peak(seconds); }

// GB/s on the calling thread, the best pass over so many numbers.
EXPORT double rtp_read_rate(const float* numbers, int64_t count, double seconds) {
  return read_rate(numbers, count, seconds);
}
