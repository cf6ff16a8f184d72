// Memory of one stream's activations: reused in stream order, allocated only while a stream meets larger batches.
#pragma once
#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <iterator>
#include <map>
#include <utility>

#include "sanitizer.h"

namespace {

class Arena {
 public:
  Arena() = default;
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  ~Arena() { release(); }

  // The smallest free block that holds `bytes`; null when memory is exhausted.
  void* allocate(int64_t bytes) {
    const int64_t size = std::max<int64_t>(kAlign, (bytes + kRedZone + kAlign - 1) / kAlign * kAlign);
    auto best = free_.end();
    for (auto it = free_.begin(); it != free_.end(); ++it)
      if (it->second >= size && (best == free_.end() || it->second < best->second)) best = it;
    if (best == free_.end() && (best = grow(size)) == free_.end()) return nullptr;
    const int64_t rest = best->second - size;
    if (rest > 0) free_.emplace_hint(std::next(best), best->first + size, rest);
    auto taken = free_.extract(best);
    taken.mapped() = size;
    char* const block = taken.key();
    live_.insert(std::move(taken));
    peak_ = std::max(peak_, used_ += size);
    allow(block, bytes);
    spoil(block, bytes);
    return block;
  }

  // Whoever records later may have the block: commands run in the order in which they are recorded. It needs no memory,
  // and so cannot fail: a run that found none gives up what it holds.
  void free(void* address) {
    // NOTE: memory is handed out before any command runs: what stands between tensors must stand until all have run.
    if (kIsSanitized) return;
    auto block = live_.extract(static_cast<char*>(address));
    if (block.empty()) return;
    used_ -= block.mapped();
    merge(std::move(block));
  }

  int64_t capacity() const { return capacity_; }

  // To be called when nothing is recorded or alive: several chunks become one, and one far too large for the batches
  // of late is given back. The memory of a large batch is halved about every 14 batches.
  void settle() {
    recent_ = std::max(peak_, recent_ - recent_ / 20);
    peak_ = 0;
    if (kIsSanitized || chunks_.size() > 1 || capacity_ > 2 * recent_ + 2 * kChunk) release();
  }

 private:
  static constexpr int64_t kAlign = 64, kChunk = int64_t(2) << 20;

  using Blocks = std::map<char*, int64_t>;  // start -> bytes

  Blocks free_, live_, chunks_;
  int64_t capacity_ = 0, used_ = 0, peak_ = 0, recent_ = 0;

  Blocks::iterator grow(int64_t bytes) {
    const int64_t wanted = std::max(bytes, recent_ - capacity_);
    const int64_t size = (wanted + kChunk - 1) / kChunk * kChunk;
    Blocks whole{{nullptr, size}}, unused = whole;  // made first: once there is a chunk, nothing may fail
    char* const chunk = map(size);
    if (chunk == nullptr) return free_.end();
    forbid(chunk, size);
    capacity_ += size;
    const auto place = [&](Blocks& from, Blocks& to) {
      auto block = from.extract(from.begin());
      block.key() = chunk;
      return to.insert(std::move(block)).position;
    };
    place(whole, chunks_);
    return place(unused, free_);
  }

  // Whole pages of the system's, to be given back at once: between chunks of several sizes malloc keeps holes that no
  // later chunk fits into, and a process with a large model kept growing.
  static char* map(int64_t size) {
    const size_t wanted = size_t(size), around = wanted + size_t(kChunk);
    void* memory = mmap(nullptr, around, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) return nullptr;
    char* const start = static_cast<char*>(memory);
    const size_t before = size_t(-reinterpret_cast<uintptr_t>(start)) % size_t(kChunk);
    char* const chunk = start + before;
    if (before > 0) munmap(start, before);
    munmap(chunk + wanted, size_t(kChunk) - before);
#if defined(MADV_HUGEPAGE)
    madvise(chunk, wanted, MADV_HUGEPAGE);
#endif
    return chunk;
  }

  void merge(Blocks::node_type block) {
    auto next = free_.lower_bound(block.key());
    if (next != free_.end() && block.key() + block.mapped() == next->first) {
      block.mapped() += next->second;
      next = free_.erase(next);
    }
    if (next != free_.begin()) {
      const auto before = std::prev(next);
      if (before->first + before->second == block.key()) {
        before->second += block.mapped();
        return;
      }
    }
    free_.insert(next, std::move(block));
  }

  void release() {
    for (const auto& [chunk, size] : chunks_) {
      allow(chunk, size);
      munmap(chunk, size_t(size));
    }
    for (Blocks* blocks : {&chunks_, &free_, &live_}) blocks->clear();
    capacity_ = used_ = 0;
  }
};

}  // namespace
