// Children forked while other threads compute, or while one asks for helpers for the first time: they compute as well.
#include <sys/wait.h>
#include <unistd.h>

#include <functional>
#include <utility>

#include "programs.h"

namespace {

std::function<void()> meanwhile;  // what is to happen while helpers are made for the first time

// A child gives the same on two threads, and does not wait for ever.
void compute_in_child(const Layer& layer, const Floats* expected) {
  const pid_t child = fork();
  check(child >= 0, "there is room for a child");
  if (child == 0) {
    alarm(60);
    const Floats output = compute(layer, kVariants[0], 2);
    _exit(expected == nullptr || output == *expected ? 0 : 1);
  }
  int status = 0;
  check(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0, "a child computes");
}

}  // namespace

// A machine of four cores, however many there are.
extern "C" int sched_getaffinity(pid_t, size_t size, cpu_set_t* set) noexcept {
  if (meanwhile) std::exchange(meanwhile, nullptr)();
  CPU_ZERO_S(size, set);
  for (size_t core = 0; core < 4; ++core) CPU_SET_S(core, size, set);
  return 0;
}

int main() {
  constexpr int kChildren = 20;
  const Layer layer;
  meanwhile = [&] { std::thread([&] { compute_in_child(layer, nullptr); }).join(); };
  const Floats expected = compute(layer, kVariants[0], 1);
  std::atomic<bool> done{false};
  std::vector<std::thread> callers;
  for (int threads : {1, 2, 3})
    callers.emplace_back([&, threads] {
      while (!done) check(compute(layer, kVariants[0], threads) == expected, "the bits are those of one thread");
    });
  for (int child = 0; child < kChildren; ++child) compute_in_child(layer, &expected);
  done = true;
  for (std::thread& caller : callers) caller.join();
  std::printf("%d children of a process at work: each computes\n", 1 + kChildren);
}
