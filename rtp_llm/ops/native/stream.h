// A stream: commands are recorded one by one and run all at once, in order, by any number of threads.
#pragma once
#include <atomic>
#include <memory>
#include <new>
#include <thread>
#include <variant>
#include <vector>

#include "arena.h"
#include "attention.h"
#include "decoder.h"
#include "experts.h"
#include "gemm_int8.h"
#include "linear.h"

namespace {

inline void relax() {
#if defined(__SSE2__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

using Command = std::variant<Linear, NormRows, Embed, Attention, Rotary, Gated, Pool, CopyColumns, Normalize, TakeRows,
                             Quantize, LinearInt8, LinearGrouped<8>, LinearGrouped<4>, Route, GroupRows,
                             ExpertProducts<Linear>, ExpertProducts<LinearInt8>, ExpertProducts<LinearGrouped<8>>,
                             ExpertProducts<LinearGrouped<4>>, MixExperts, Activate>;

class Stream {
 public:
  void record(const Command& command) { commands_.push_back(command); }
  int64_t pending() const { return int64_t(commands_.size()); }
  void clear() { commands_.clear(); }
  int64_t capacity() const { return arena_.capacity(); }

  // A tensor's memory is that of its slot, in stream order; what the slot held before is given up.
  void allocate(int64_t slot, int64_t bytes) {
    if (slot >= int64_t(slots_.size())) slots_.resize(size_t(slot) + 1);
    free(slot);
    slots_[size_t(slot)] = arena_.allocate(bytes);
    if (slots_[size_t(slot)] == nullptr) throw std::bad_alloc();
  }

  void free(int64_t slot) {
    if (slot < int64_t(slots_.size())) arena_.free(std::exchange(slots_[size_t(slot)], nullptr));
  }

  // Null memory is that of a run which failed for want of it.
  float* block(int64_t slot) const {
    void* memory = slot < int64_t(slots_.size()) ? slots_[size_t(slot)] : nullptr;
    if (memory == nullptr) throw std::bad_alloc();
    return static_cast<float*>(memory);
  }

  // Nothing is recorded and no tensor alive: the start of a batch, or the end of one that failed.
  void reset() {
    clear();
    for (size_t slot = 0; slot < slots_.size(); ++slot) free(int64_t(slot));
    arena_.settle();
  }

  void run_alone() {
    for (Command& command : commands_)
      std::visit([](auto& c) { for (int64_t i = 0, tasks = c.plan(1); i < tasks; ++i) c.run(i); }, command);
  }

  // Before `walk`: how many tasks each command has, none of them taken.
  void plan(int threads) {
    ran_out_ = false;
    if (capacity_ < commands_.size()) {
      const size_t wanted = commands_.size() + commands_.size() / 2;
      progress_.reset(new Progress[wanted]);
      capacity_ = wanted;
    }
    for (size_t i = 0; i < commands_.size(); ++i)
      progress_[i].reset(std::visit([&](auto& command) { return command.plan(threads); }, commands_[i]));
  }

  // Each thread takes tasks until none is left, then waits for those that others took. A thread may join at any time,
  // and one that is delayed between two tasks delays nobody.
  void walk() {
    for (size_t i = 0; i < commands_.size(); ++i) {
      Progress& progress = progress_[i];
      std::visit([&](const auto& command) { share(command, progress); }, commands_[i]);
      wait(progress);
    }
  }

  // After a walk: some thread found no memory for its scratch, and what was computed is worth nothing.
  bool ran_out() const { return ran_out_; }

 private:
  struct alignas(64) Progress {
    std::atomic<int64_t> taken{0}, done{0};
    int64_t tasks = 0;

    void reset(int64_t n) {
      taken.store(0, std::memory_order_relaxed);
      done.store(0, std::memory_order_relaxed);
      tasks = n;
    }
  };

  Arena arena_;
  std::vector<void*> slots_;
  std::vector<Command> commands_;
  std::unique_ptr<Progress[]> progress_;
  size_t capacity_ = 0;
  std::atomic<bool> ran_out_{false};

  template <class C>
  void share(const C& command, Progress& progress) {
    int64_t mine = 0;
    if (progress.taken.load(std::memory_order_relaxed) >= progress.tasks) return;
    for (int64_t i; (i = progress.taken.fetch_add(1, std::memory_order_relaxed)) < progress.tasks; ++mine) {
      try {
        command.run(i);
      } catch (const std::bad_alloc&) {  // the other threads wait for this task all the same
        ran_out_ = true;
      }
    }
    if (mine > 0) progress.done.fetch_add(mine, std::memory_order_release);
  }

  // NOTE: a pause is some 40 ns on Intel: after 8 us the core is offered to others, the event loop for one.
  static void wait(const Progress& progress) {
    for (int spins = 0; progress.done.load(std::memory_order_acquire) < progress.tasks; ++spins) {
      if (spins < 200) relax();
      else std::this_thread::yield();
    }
  }
};

}  // namespace
