// A pool that runs one loop at a time on all its threads, spins a bounded while between loops, then sleeps.
#pragma once
#include <functional>
#include <memory>

namespace rksim {

// RKSIM_THREADS (Error when it is no number from 1 to 256), else the cores this process may run on.
int default_threads();

class ThreadPool {
 public:
  explicit ThreadPool(int threads);  // threads >= 1; the caller of run() is one of them. Throws Error
  ~ThreadPool();
  int size() const { return size_; }
  // Calls body(begin, end) over [0, n) in chunks that are multiples of `grain` (but for the last); returns when all
  // are done. body must not throw. The split never changes a result: chunks write apart.
  // In a forked child, where the threads are not, it starts them anew.
  void run(int64_t n, int64_t grain, const std::function<void(int64_t, int64_t)>& body);

 private:
  struct Impl;
  const int size_;
  std::shared_ptr<Impl> impl_;
};

}  // namespace rksim
