// Tokens and times of a run's two stages: what RKLLM_LOG_LEVEL=1 prints, and what some releases hand over.
#pragma once
#include <chrono>
#include <cstddef>

#include "event.h"

namespace rksim {

class Figures {
 public:
  void start();              // the prompt begins
  void prefilled(size_t n);  // its n tokens are evaluated
  void end(size_t n);        // n tokens of an answer came since
  void print() const;
  Perf perf(size_t answers) const;  // of so many answers: their first tokens come from the prompt

 private:
  using Clock = std::chrono::steady_clock;
  Clock::time_point begin_{}, answer_{}, end_{};
  size_t prompt_ = 0, tokens_ = 0;
};

}  // namespace rksim
