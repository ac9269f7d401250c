#include "faults.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <ctime>
#include <set>
#include <thread>

#include "error.h"
#include "log.h"

namespace rksim {
namespace {

constexpr int kMost = 1000000;
constexpr const char* kWords =
    "init_lies, null_text, finish_null, error_at=N, crash_at=N, hang_at=N, load_ms=N, prefill_ms=N, token_ms=N and "
    "once=FILE";

[[noreturn]] void refuse(const std::string& why) { throw Error("RKSIM_FAULTS: " + why); }

int number(const std::string& name, const std::string& value) {
  const bool digits = !value.empty() && value.size() <= 7 && value.find_first_not_of("0123456789") == value.npos;
  const int n = digits ? std::atoi(value.c_str()) : kMost + 1;
  if (n > kMost) refuse(name + " is '" + value + "': it must be a whole number from 0 to " + std::to_string(kMost));
  return n;
}

void set(Faults& faults, const std::string& word) {
  const size_t equals = word.find('=');
  const bool valued = equals != word.npos;
  const std::string name = word.substr(0, equals), value = valued ? word.substr(equals + 1) : "";
  if (name == "init_lies" && !valued)
    faults.init_lies = true;
  else if (name == "null_text" && !valued)
    faults.null_text = true;
  else if (name == "finish_null" && !valued)
    faults.finish_null = true;
  else if (name == "error_at" && valued)
    faults.error_at = number(name, value);
  else if (name == "crash_at" && valued)
    faults.crash_at = number(name, value);
  else if (name == "hang_at" && valued)
    faults.hang_at = number(name, value);
  else if (name == "load_ms" && valued)
    faults.load_ms = number(name, value);
  else if (name == "prefill_ms" && valued)
    faults.prefill_ms = number(name, value);
  else if (name == "token_ms" && valued)
    faults.token_ms = number(name, value);
  else if (name == "once" && !value.empty())
    faults.once = value;
  else
    refuse("there is no '" + word + "'; there are " + kWords);
}

// So that nobody takes a fault on request for one of the runtime.
void announce(const char* word, int n) {
  log_line("E rksim", std::string(word) + "=" + std::to_string(n) + " acts now (RKSIM_FAULTS)");
}

std::string clock_time() {
  const auto now = std::chrono::system_clock::now();
  const std::time_t seconds = std::chrono::system_clock::to_time_t(now);
  const auto ms = std::chrono::duration_cast<std::chrono::milliseconds>(now.time_since_epoch()).count() % 1000;
  std::tm parts{};
  gmtime_r(&seconds, &parts);
  char text[16], whole[32];
  std::strftime(text, sizeof text, "%H:%M:%S", &parts);
  std::snprintf(whole, sizeof whole, "%s.%03d", text, static_cast<int>(ms));
  return whole;
}

}  // namespace

Faults faults_setting() {
  Faults faults;
  const char* setting = std::getenv("RKSIM_FAULTS");
  if (!setting || !*setting) return faults;
  std::set<std::string> names;
  const std::string all = setting;
  for (size_t begin = 0; begin <= all.size();) {
    const size_t end = std::min(all.find(',', begin), all.size());
    const std::string word = all.substr(begin, end - begin);
    set(faults, word);
    const std::string name = word.substr(0, word.find('='));
    if (!names.insert(name).second) refuse(name + " stands in it twice");
    begin = end + 1;
  }
  log_line("W rksim", "faults on request: " + all + " (RKSIM_FAULTS)");
  return faults;
}

bool claim(const Faults& faults) {
  if (faults.once.empty()) return true;
  const int file = open(faults.once.c_str(), O_CREAT | O_EXCL | O_WRONLY | O_CLOEXEC, 0666);
  if (file >= 0) {
    close(file);
    return true;
  }
  if (errno != EEXIST) refuse("cannot create once=" + faults.once + ": " + std::strerror(errno));
  return false;
}

void sleep_ms(int milliseconds) {
  if (milliseconds) std::this_thread::sleep_for(std::chrono::milliseconds(milliseconds));
}

void act_at(const Faults& faults, int n) {
  if (faults.error_at == n && claim(faults)) throw Error("error_at=" + std::to_string(n) + " (RKSIM_FAULTS)");
  if (faults.crash_at == n && claim(faults)) {
    announce("crash_at", n);
    std::abort();
  }
  if (faults.hang_at == n && claim(faults)) {
    announce("hang_at", n);
    for (;;) pause();
  }
}

// The next two are worded as users of the real 1.1 report them.
void say_load_failed() {
  const std::string tag = "E RKNN: [" + clock_time() + "] ";
  log_text(tag + "invalid rknn llm model magic\n" + tag + "load model file error!\nrknn_init fail! ret=-1\n");
}

void die_without_model() {
  log_text(
      "0: GGML_ASSERT(view_src == NULL || data_size == 0 || data_size + view_offs <= ggml_nbytes(view_src)) "
      "failed\n");
  std::abort();
}

}  // namespace rksim
