// What a library must know of the process it lives in: forks, which leave its threads behind, and signals, whose
// handlers may call it in the middle of anything.
#pragma once
#include <csignal>
#include <cstdint>
#include <memory>
#include <mutex>

namespace rksim {

// How many forks lie between this process and the one that asked first. Threads, and the locks and conditions they
// waited at, are there only while this is what it was when they were made.
uint64_t forks();

// Keeps for ever what a forked child can neither use nor take apart: its threads are not there.
void abandon(std::shared_ptr<void> what);

// For what must not wait for ever: false where the lock is not to be had.
bool lock_within_a_second(std::mutex& mutex);

// While it lives this thread runs no handler of a signal that comes from outside (SIGINT, SIGTERM, ...), and threads
// it starts never will: a handler that calls the library must not meet a lock that its own thread holds, and one that
// waits for a run must not stop a thread that computes it.
class SignalsHeld {
 public:
  SignalsHeld();
  ~SignalsHeld();
  SignalsHeld(const SignalsHeld&) = delete;

 private:
  sigset_t before_;
};

// Marks this thread as inside the library, or, for a callback, as outside again. A call that finds its thread inside
// can only come from a signal handler.
class Inside {
 public:
  explicit Inside(bool inside = true);
  ~Inside();
  Inside(const Inside&) = delete;
  static bool here();

 private:
  bool before_;
};

}  // namespace rksim
