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
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") && rtp_cpu_supports_avx2();
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

// Start of a batch: commands whose results nobody holds any more are dropped, as after an exception half-way through
// a model; returns how many remain.
EXPORT int64_t rtp_begin(Stream* stream) {
  if (stream->arena.idle()) {
    stream->clear();
    stream->arena.settle();
  }
  return stream->pending();
}

EXPORT void rtp_run(Stream* stream, int threads) { the_threads()->run(*stream, threads); }

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

namespace {

// NOTE: the numbers come from outside: of constants the compiler computes a chain that stays where it starts (at 1).
template <size_t... I>
Vec multiply_adds(int64_t steps, const volatile float* numbers, std::index_sequence<I...>) {
  const Vec factor = broadcast(numbers[0]), term = broadcast(numbers[1]);
  Vec sums[] = {broadcast(numbers[1] + float(I))...};
  for (int64_t step = 0; step < steps; ++step) ((sums[I] = sums[I] * factor + term), ...);
  return (sums[I] + ...);
}

}  // namespace

// GFLOP/s of multiply-adds between registers on the calling thread; the best slice of about a millisecond.
EXPORT double rtp_peak(double seconds) {
  using Clock = std::chrono::steady_clock;
  constexpr int64_t kChains = 12, kSteps = 500000;
  const auto begin = Clock::now();
  double best = 0.0;
  volatile float sink = 0.0f;
  const volatile float numbers[] = {0.999f, 0.001f};
  for (auto now = begin; now - begin < std::chrono::duration<double>(seconds);) {
    const auto start = now;
    sink = sink + sum_lanes(multiply_adds(kSteps, numbers, std::make_index_sequence<kChains>{}));
    now = Clock::now();
    best = std::max(best, 2e-9 * kWidth * kChains * kSteps / std::chrono::duration<double>(now - start).count());
  }
  return best;
}
