#include "figures.h"

#include <sys/resource.h>

#include <algorithm>
#include <cstdio>
#include <string>

#include "log.h"

namespace rksim {
namespace {

using Milliseconds = std::chrono::duration<double, std::milli>;

constexpr const char* kColumns = " %-13s %-16s %-9s %-24s %-24s";

std::string line(const char* stage, const char* total, const char* tokens, const char* each, const char* rate) {
  char text[128];
  std::snprintf(text, sizeof text, kColumns, stage, total, tokens, each, rate);
  return text;
}

std::string line(const char* stage, double ms, size_t tokens) {
  const double each = tokens ? ms / static_cast<double>(tokens) : 0;
  char total[32], per_token[32], rate[32];
  std::snprintf(total, sizeof total, "%.2f", ms);
  std::snprintf(per_token, sizeof per_token, "%.2f", each);
  std::snprintf(rate, sizeof rate, "%.2f", each > 0 ? 1000 / each : 0);
  return line(stage, total, std::to_string(tokens).c_str(), per_token, rate);
}

}  // namespace

void Figures::start() {
  begin_ = answer_ = end_ = Clock::now();
  prompt_ = tokens_ = 0;
}

void Figures::prefilled(size_t n) {
  answer_ = Clock::now();
  prompt_ = n;
}

void Figures::end(size_t n) {
  end_ = Clock::now();
  tokens_ = n;
}

Perf Figures::perf(size_t answers) const {
  rusage used{};
  getrusage(RUSAGE_SELF, &used);
  return {static_cast<float>(Milliseconds(answer_ - begin_).count()), static_cast<int>(prompt_),
          static_cast<float>(Milliseconds(end_ - answer_).count()),
          static_cast<int>(tokens_ - std::min(tokens_, answers)), static_cast<float>(used.ru_maxrss) / 1024};
}

void Figures::print() const {
  const std::string rule(86, '-');
  std::string text;
  for (const std::string& row :
       {rule, line("Stage", "Total Time (ms)", "Tokens", "Time per Token (ms)", "Tokens per Second"), rule,
        line("Prefill", Milliseconds(answer_ - begin_).count(), prompt_),
        line("Generate", Milliseconds(end_ - answer_).count(), tokens_), rule})
    text += "I rkllm: " + row + "\n";
  log_text(text);  // in one go: lines of other threads do not come between
}

}  // namespace rksim
