// Memory for what a thread computes in passing: it grows, and is kept.
#pragma once
#include <cstdint>
#include <memory>
#include <new>

#include "sanitizer.h"

namespace {

constexpr std::align_val_t kLine{64};

struct FreeLines {
  void operator()(float* data) const { ::operator delete(data, kLine); }
};

struct Scratch {
  std::unique_ptr<float, FreeLines> data;
  int64_t size = 0;

  // What was there is lost where it grows; bad_alloc leaves it, and its size.
  float* reserve(int64_t n) {
    if (kIsSanitized ? n != size : n > size) {
      data.reset(static_cast<float*>(::operator new(size_t(n) * 4, kLine)));
      size = n;
    }
    return data.get();
  }
};

inline Scratch& thread_scratch() {
  thread_local Scratch scratch;
  return scratch;
}

inline Scratch& panel_scratch() {
  thread_local Scratch scratch;
  return scratch;
}

}  // namespace
