// What RKLLM_LOG_LEVEL=1 prints of a run: tokens and times of its two stages.
#pragma once
#include <chrono>
#include <cstddef>

namespace rksim {

class Figures {
 public:
  void start();              // the prompt begins
  void prefilled(size_t n);  // its n tokens are evaluated
  void print(size_t n);      // n tokens of an answer came since

 private:
  using Clock = std::chrono::steady_clock;
  Clock::time_point begin_{}, answer_{};
  size_t prompt_ = 0;
};

}  // namespace rksim
