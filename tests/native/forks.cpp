// Children forked while other threads compute, or while one asks for helpers for the first time: they compute as well.
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <functional>
#include <utility>

#include "programs.h"

namespace {

std::function<void()> meanwhile;  // what is to happen while helpers are made for the first time

// Ends a child that waits for ever, be it within fork().
bool ended_well(pid_t child) {
  constexpr int kSeconds = 60;
  int status = 0;
  for (int tenth = 0; tenth < 10 * kSeconds; ++tenth) {
    if (waitpid(child, &status, WNOHANG) == child) return WIFEXITED(status) && WEXITSTATUS(status) == 0;
    usleep(100000);
  }
  kill(child, SIGKILL);
  return false;
}

// A child gives the same on two threads.
void compute_in_child(const Layer& layer, const Floats* expected) {
  const pid_t child = fork();
  check(child >= 0, "there is room for a child");
  if (child == 0) {
    const Floats output = compute(layer, kVariants[0], 2);
    _exit(expected == nullptr || output == *expected ? 0 : 1);
  }
  check(ended_well(child), "a child computes");
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
