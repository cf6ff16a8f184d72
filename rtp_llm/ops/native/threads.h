// The process's helpers: threads that sleep until a stream may use more than the caller's core.
#pragma once
#include <pthread.h>
#include <sched.h>

#include <condition_variable>
#include <exception>
#include <list>
#include <mutex>
#include <thread>

#include "stream.h"

namespace {

inline int available_cores() {
#if defined(__linux__)
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return CPU_COUNT(&set);
#endif
  return std::max(1, int(std::thread::hardware_concurrency()));
}

class Threads {
 public:
  // Runs what `stream` has recorded on the caller and at most `threads - 1` helpers; never on more threads, over all
  // streams, than there are cores. bad_alloc where there is no memory to share the work out, or to do it: no thread is
  // at work then.
  void run(Stream& stream, int threads) {
    if (stream.pending() == 0) return;
    threads = std::min(threads, cores_);
    const Running running{running_};
    if (threads <= 1) {
      stream.run_alone();
    } else {
      stream.plan(threads);
      std::list<Job> job{{&stream, threads - 1, 0}};
      const Place place = job.begin();
      open(job, place);
      stream.walk();
      close(job, place);
      if (stream.ran_out()) throw std::bad_alloc();
    }
    stream.clear();
  }

 private:
  // A thread that works, for as long as this lives.
  struct Running {
    std::atomic<int>& count;
    explicit Running(std::atomic<int>& count) : count(count) { ++count; }
    ~Running() { --count; }
  };
  struct Job {
    Stream* stream;
    int vacancies, helpers;
  };
  using Place = std::list<Job>::iterator;

  const int cores_ = available_cores();
  std::atomic<int> running_{0};
  std::mutex mutex_;
  std::condition_variable opened_, left_;
  std::list<Job> jobs_;
  int threads_ = 0;

  // A job is moved into the list of open ones, and out of it: that needs no memory, and so cannot fail.
  void open(std::list<Job>& job, Place place) {
    std::lock_guard<std::mutex> lock(mutex_);
    jobs_.splice(jobs_.end(), job, place);
    try {
      for (; threads_ < cores_ - 1; ++threads_) std::thread([this] { help(); }).detach();
    } catch (const std::exception&) {
      // The system has no more threads, or no memory, for this process: those that there are will do; the next run asks again.
    }
    for (int i = 0; i < place->vacancies; ++i) opened_.notify_one();
  }

  void close(std::list<Job>& job, Place place) {
    std::unique_lock<std::mutex> lock(mutex_);
    job.splice(job.end(), jobs_, place);
    left_.wait(lock, [&] { return place->helpers == 0; });
  }

  Job* vacancy() {
    if (running_ >= cores_) return nullptr;
    for (Job& job : jobs_)
      if (job.vacancies > 0) return &job;
    return nullptr;
  }

  void help() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      Job* job = nullptr;
      opened_.wait(lock, [&] { return (job = vacancy()) != nullptr; });
      --job->vacancies;
      ++job->helpers;
      ++running_;
      lock.unlock();
      job->stream->walk();
      lock.lock();
      --running_;
      if (--job->helpers == 0) left_.notify_all();
    }
  }
};

// Never destroyed: helpers may outlive main(). A forked child has no helpers, so it starts anew.
// NOTE: without a lock, and so without a static's guard: a child that is forked by another thread meanwhile would wait
// for whoever held it, who is not there.
inline Threads& the_threads() {
  static std::atomic<Threads*> threads{nullptr};
  if (Threads* there = threads.load(std::memory_order_acquire)) return *there;
  auto made = std::make_unique<Threads>();
  Threads* there = nullptr;
  pthread_atfork(nullptr, nullptr, [] { threads = new Threads; });
  if (threads.compare_exchange_strong(there, made.get())) there = made.release();
  return *there;
}

}  // namespace
