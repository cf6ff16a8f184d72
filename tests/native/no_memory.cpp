// Memory that is refused, at each place where a run asks for some: the run fails, and nothing else does.
#include <sys/mman.h>

#include <atomic>
#include <cstdlib>
#include <new>

namespace {

// Requests so far, and those refused: the `nth`, below zero none, and with `all` those after it.
std::atomic<int> requests{0}, refusals{0}, nth{-1};
std::atomic<bool> all{false};

bool refused() {
  const int request = requests++, first = nth;
  if (first < 0 || request < first || (request > first && !all)) return false;
  ++refusals;
  return true;
}

void* map_or_refuse(void* start, size_t size, int protection, int flags, int file, off_t offset) {
  return refused() ? MAP_FAILED : mmap(start, size, protection, flags, file, offset);
}

}  // namespace

void* operator new(size_t size) {
  void* memory = refused() ? nullptr : std::malloc(size);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
void* operator new(size_t size, const std::nothrow_t&) noexcept { return refused() ? nullptr : std::malloc(size); }
void* operator new(size_t size, std::align_val_t alignment) {
  void* memory = nullptr;
  if (refused() || posix_memalign(&memory, size_t(alignment), size) != 0) throw std::bad_alloc();
  return memory;
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, size_t, std::align_val_t) noexcept { std::free(memory); }

#define mmap map_or_refuse
#include "programs.h"
#undef mmap

namespace {

// Refuses the nth request of a run. False where it asks for fewer.
bool try_refusing(int request, const Layer& layer, const Variant& variant, const Floats& expected, int threads) {
  Floats output(expected.size());
  const std::string words = layer.record(variant, output.data());
  Stream* const stream = rtp_stream_new();
  const auto run = [&] { return rtp_run(stream, words.data(), int64_t(words.size()) / 8, threads) != 0; };
  requests = refusals = 0;
  nth = request;
  const bool done = run();
  nth = -1;
  // A thread that cannot be started is done without.
  check(done ? output == expected : refusals > 0, "a run fails where memory was refused, and else is right");
  for (int again = 0; again < 2; ++again) {
    std::fill(output.begin(), output.end(), 0.0f);
    check(run() && output == expected, "the next one finds its memory");
  }
  check(rtp_arena_capacity(stream) < 8 << 20, "no memory is lost");
  rtp_stream_delete(stream);
  return refusals > 0;
}

}  // namespace

int main() {
  const Layer layer;
  int places = 0;
  for (size_t i = 0; i < kNumVariants; i += 3) {
    const Floats expected = compute(layer, kVariants[i], 1);
    for (int threads : {1, 2})
      for (bool later_too : {false, true}) {
        all = later_too;
        for (int request = 0; try_refusing(request, layer, kVariants[i], expected, threads); ++request) ++places;
      }
  }
  std::printf("memory refused at %d places: each run failed alone\n", places);
}
