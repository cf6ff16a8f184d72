// Several callers run programs on streams of their own, on as many helpers as they like, while streams come and go: for
// a thread sanitizer, and for bits that depend on none of it.
#include "programs.h"

namespace {

constexpr int kCallers = 4, kRounds = 6;

// A machine of four cores, however many there are.
extern "C" int sched_getaffinity(pid_t, size_t size, cpu_set_t* set) noexcept {
  CPU_ZERO_S(size, set);
  for (size_t core = 0; core < 4; ++core) CPU_SET_S(core, size, set);
  return 0;
}

void call(const Layer& layer, const std::vector<Floats>& expected, int caller) {
  Floats output(expected[0].size());
  Stream* const stream = rtp_stream_new();
  for (int round = 0; round < kRounds; ++round)
    for (size_t i = 0; i < kNumVariants; ++i) {
      const std::string words = layer.record(kVariants[i], output.data());
      const int threads = 1 + (caller + round) % 4;
      check(rtp_run(stream, words.data(), int64_t(words.size()) / 8, threads), "there is memory to run in");
      check(output == expected[i], "the bits are those of one thread");
      check(compute(layer, kVariants[i], threads) == expected[i], "so are those of a new stream");
    }
  rtp_stream_delete(stream);
}

}  // namespace

int main() {
  const Layer layer;
  std::vector<Floats> expected;
  for (const Variant& variant : kVariants) expected.push_back(compute(layer, variant, 1));
  std::vector<std::thread> callers;
  for (int caller = 0; caller < kCallers; ++caller) callers.emplace_back(call, std::cref(layer), std::cref(expected), caller);
  for (std::thread& caller : callers) caller.join();
  std::printf("%zu programs on %d callers, %d times each: no race, the same bits\n", kNumVariants, kCallers, 2 * kRounds);
}
