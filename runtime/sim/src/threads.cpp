#include "threads.h"

#include <sched.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstdlib>
#include <mutex>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "error.h"
#include "process.h"

namespace rksim {
namespace {

// About 50 microseconds: longer than the gap between two layers, short enough to be kind to a neighbour.
constexpr int kSpins = 4000;
// Each thread's share is cut into this many chunks, so that one that loses its core holds the others up little.
constexpr int64_t kChunksPerThread = 4;
constexpr long kMaxThreads = 256;

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

int default_threads() {
  if (const char* text = std::getenv("RKSIM_THREADS"); text && *text) {
    char* end = nullptr;
    const long n = std::strtol(text, &end, 10);
    if (*end || n < 1 || n > kMaxThreads)
      throw Error(std::string("RKSIM_THREADS is '") + text + "': it must be a whole number from 1 to " +
                  std::to_string(kMaxThreads));
    return static_cast<int>(n);
  }
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof set, &set) == 0) return std::max(1, CPU_COUNT(&set));
  return static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
}

struct ThreadPool::Impl {
  const uint64_t born = forks();
  std::vector<std::thread> threads;
  std::mutex mutex;
  std::condition_variable wake;
  std::atomic<uint64_t> round{0};  // odd while a loop is open to join
  std::atomic<int> busy{0};        // helpers inside the current loop
  std::atomic<int> sleeping{0};
  std::atomic<bool> stop{false};

  // The loop at hand; written only while no helper is inside.
  const std::function<void(int64_t, int64_t)>* body = nullptr;
  int64_t n = 0, chunk = 1;
  std::atomic<int64_t> next{0};

  void work() {
    for (int64_t begin; (begin = next.fetch_add(chunk)) < n;) (*body)(begin, std::min(n, begin + chunk));
  }

  explicit Impl(int size) {
    SignalsHeld held;
    try {
      for (int i = 1; i < size; i++) threads.emplace_back([this] { helper(); });
    } catch (const std::system_error& error) {
      end();
      throw Error("cannot start " + std::to_string(size) + " threads (RKSIM_THREADS): " + error.what());
    }
  }
  ~Impl() { end(); }

  void end() {
    {
      std::lock_guard lock(mutex);
      stop = true;
    }
    wake.notify_all();
    for (auto& thread : threads) thread.join();
    threads.clear();
  }

  void helper() {
    uint64_t seen = 0;
    while (true) {
      int spins = 0;
      while (round.load(std::memory_order_acquire) == seen && !stop.load(std::memory_order_relaxed)) {
        if (++spins < kSpins) {
          relax();
          continue;
        }
        std::unique_lock lock(mutex);
        sleeping++;
        wake.wait(lock, [&] { return round.load() != seen || stop.load(); });
        sleeping--;
      }
      if (stop.load(std::memory_order_relaxed)) return;
      // Join, then look again: the loop may have been closed in between, and its fields be in change.
      busy.fetch_add(1);
      uint64_t now = round.load();
      if (now & 1) work();
      seen = now;
      busy.fetch_sub(1);
    }
  }
};

ThreadPool::ThreadPool(int threads) : size_(threads), impl_(std::make_shared<Impl>(threads)) {}

// The helpers of a process that forked are not there to be joined.
ThreadPool::~ThreadPool() {
  if (impl_->born != forks()) abandon(std::move(impl_));
}

void ThreadPool::run(int64_t n, int64_t grain, const std::function<void(int64_t, int64_t)>& body) {
  if (impl_->born != forks()) {
    auto anew = std::make_shared<Impl>(size_);
    abandon(std::exchange(impl_, std::move(anew)));
  }
  Impl& p = *impl_;
  int64_t share = n / (size_ * kChunksPerThread);
  int64_t chunk = std::max(grain, share / grain * grain);
  if (p.threads.empty() || chunk >= n) {
    if (n > 0) body(0, n);
    return;
  }
  p.body = &body;
  p.n = n;
  p.chunk = chunk;
  p.next.store(0);
  p.round.fetch_add(1);  // open
  if (p.sleeping.load() > 0) {
    std::lock_guard lock(p.mutex);  // a helper between its test and its wait must not miss the call
    p.wake.notify_all();
  }
  p.work();
  p.round.fetch_add(1);  // closed: who comes now finds nothing to do
  while (p.busy.load() > 0) relax();
}

}  // namespace rksim
