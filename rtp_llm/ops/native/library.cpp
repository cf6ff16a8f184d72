// The C ABI of the kernels, compiled once per instruction set and loaded by ctypes.
//
// rtp_alloc … rtp_record_* are called with Python's lock held and only touch one stream's lists; rtp_run and
// rtp_pack_weight do the work, without the lock. Shapes and index ranges are checked by the caller.
#include <chrono>
#include <new>

#include "threads.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT int rtp_abi_version() { return 1; }

EXPORT int rtp_cpu_supports_avx2() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
  return 0;
#endif
}

EXPORT int rtp_cpu_supports_avx512() {
#if defined(__x86_64__)
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq") && rtp_cpu_supports_avx2();
#else
  return 0;
#endif
}

EXPORT int rtp_num_cores() { return available_cores(); }

EXPORT int64_t rtp_packed_size(int64_t N, int64_t K) { return ceil_div(N, kPanel) * kPanel * K; }
EXPORT void rtp_pack_weight(const float* w, int64_t N, int64_t K, float* packed) { pack_weight(w, N, K, packed); }

EXPORT Stream* rtp_stream_new() { return new (std::nothrow) Stream; }
EXPORT void rtp_stream_delete(Stream* stream) { delete stream; }
EXPORT void* rtp_alloc(Stream* stream, int64_t bytes) { return stream->arena.allocate(bytes); }
EXPORT void rtp_free(Stream* stream, void* block) { stream->arena.free(block); }
EXPORT int64_t rtp_arena_capacity(Stream* stream) { return stream->arena.capacity(); }

// Commands whose results nobody holds any more are dropped; returns how many remain.
EXPORT int64_t rtp_pending(Stream* stream) {
  if (stream->arena.idle()) stream->clear();
  return stream->pending();
}

EXPORT void rtp_run(Stream* stream, int threads) { the_threads()->run(*stream, threads); }

EXPORT void rtp_settle(Stream* stream) {
  if (stream->arena.idle() && stream->pending() == 0) stream->arena.settle();
}

EXPORT void rtp_record_linear(Stream* stream, float* y, const float* x, const float* weight, const float* bias,
                              const float* residual, int64_t M, int64_t N, int64_t K, int activation) {
  stream->record(Linear{x, weight, bias, residual, y, M, N, K, activation});
}

EXPORT void rtp_record_norm(Stream* stream, float* y, const float* x, int64_t rows, int64_t size, const float* weight,
                            const float* bias, float eps, int centered) {
  stream->record(NormRows{x, y, rows, size, {weight, bias, eps, centered != 0}});
}

EXPORT int rtp_max_lookups() { return kMaxLookups; }

EXPORT void rtp_record_embed(Stream* stream, float* y, int64_t rows, int64_t size, int lookups,
                             const float* const* tables, const int32_t* const* ids, const float* weight,
                             const float* bias, float eps, int centered) {
  Embed embed{{}, {}, lookups, y, rows, size, {weight, bias, eps, centered != 0}};
  std::copy_n(tables, lookups, embed.tables);
  std::copy_n(ids, lookups, embed.ids);
  stream->record(embed);
}

EXPORT void rtp_record_attention(Stream* stream, float* out, const float* qkv, const int32_t* cu_seqlens,
                                 int64_t num_seqs, int64_t max_seqlen, int64_t heads, int64_t kv_heads,
                                 int64_t head_dim, float scale, int causal, int64_t window) {
  stream->record(Attention{qkv, out, cu_seqlens, num_seqs, max_seqlen, heads, kv_heads, head_dim, scale, causal != 0,
                           window});
}

EXPORT void rtp_record_pool(Stream* stream, float* y, const float* x, const int32_t* cu_seqlens,
                            const int32_t* prompt_lens, int64_t num_seqs, int64_t size, int mode) {
  stream->record(Pool{x, y, cu_seqlens, prompt_lens, num_seqs, size, mode});
}

EXPORT void rtp_record_copy_columns(Stream* stream, float* y, const float* x, int64_t rows, int64_t size,
                                    int64_t stride) {
  stream->record(CopyColumns{x, y, rows, size, stride});
}

EXPORT void rtp_record_normalize(Stream* stream, float* y, const float* x, int64_t rows, int64_t size) {
  stream->record(Normalize{x, y, rows, size});
}

// GFLOP/s of multiply-adds between registers on the calling thread.
EXPORT double rtp_peak(double seconds) {
  constexpr int kChains = 10, kSteps = 100000;
  Vec sums[kChains];
  for (int i = 0; i < kChains; ++i) sums[i] = broadcast(float(i));
  Vec factor = broadcast(0.999f), term = broadcast(0.001f);
  using Clock = std::chrono::steady_clock;
  double best = 0.0, total = 0.0;
  while (total < seconds) {
    const auto start = Clock::now();
    for (int step = 0; step < kSteps; ++step) {
#pragma GCC unroll 16
      for (int i = 0; i < kChains; ++i) sums[i] = sums[i] * factor + term;
      asm volatile("" : "+m"(*reinterpret_cast<char*>(&best)));
    }
    const double elapsed = std::chrono::duration<double>(Clock::now() - start).count();
    best = std::max(best, 2.0 * kWidth * kChains * kSteps / elapsed * 1e-9);
    total += elapsed;
  }
  volatile float sink = sum_lanes(sums[0]);
  for (int i = 1; i < kChains; ++i) sink = sink + sum_lanes(sums[i]);
  return best;
}
