// Misbehaviour on request (RKSIM_FAULTS), so that a program can be tested against what a board may do to it.
// docs/sim-runtime.md lists the words.
#pragma once
#include <optional>
#include <string>

namespace rksim {

struct Faults {
  bool init_lies = false, null_text = false, finish_null = false;
  // Of a run: in front of this token, 1 being the first; 0: inside the prompt.
  std::optional<int> error_at, crash_at, hang_at;
  int load_ms = 0, prefill_ms = 0, token_ms = 0;
  std::string once;  // empty: the faults act every time
};

// Throws Error on what it does not know.
Faults faults_setting();

// True where `once` lets a fault act. Throws Error when its file can be neither created nor found.
bool claim(const Faults& faults);

void sleep_ms(int milliseconds);

// What is due in front of the run's n-th token: error_at throws Error, the other two do not return.
void act_at(const Faults& faults, int n);

// The log lines of an rkllm_init that lies, and the end of the first run after it.
void say_load_failed();
[[noreturn]] void die_without_model();

}  // namespace rksim
