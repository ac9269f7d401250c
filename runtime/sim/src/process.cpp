#include "process.h"

#include <pthread.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

namespace rksim {
namespace {

std::atomic<uint64_t> fork_count{0};

// sig_atomic_t: written by the thread that its signal handlers read it in.
thread_local volatile std::sig_atomic_t inside = 0;

sigset_t signals_from_outside() {
  sigset_t set;
  sigemptyset(&set);
  for (int signal : {SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGALRM, SIGUSR1, SIGUSR2, SIGCHLD, SIGTSTP, SIGWINCH})
    sigaddset(&set, signal);
  return set;
}

}  // namespace

uint64_t forks() {
  static const bool counted = pthread_atfork(nullptr, nullptr, [] { fork_count++; }) == 0;
  (void)counted;  // it fails where there is no memory, and then nothing else goes on for long
  return fork_count;
}

void abandon(std::shared_ptr<void> what) {
  struct Kept {
    std::mutex mutex;
    std::vector<std::shared_ptr<void>> all;
  };
  static Kept* kept = new Kept;
  std::lock_guard lock(kept->mutex);
  kept->all.push_back(std::move(what));
}

bool lock_within_a_second(std::mutex& mutex) {
  for (int i = 0; i < 1000; i++) {
    if (mutex.try_lock()) return true;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return false;
}

SignalsHeld::SignalsHeld() {
  static const sigset_t set = signals_from_outside();
  pthread_sigmask(SIG_BLOCK, &set, &before_);
}
SignalsHeld::~SignalsHeld() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }

Inside::Inside(bool now) : before_(inside) { inside = now; }
Inside::~Inside() { inside = before_; }
bool Inside::here() { return inside; }

}  // namespace rksim
