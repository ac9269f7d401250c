#include "settings.h"

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>

#include "error.h"

namespace rksim {
namespace {

constexpr int64_t kPastContext = 4096, kMostPastContext = 1000000000;

// nullptr: unset, or empty.
const char* variable(const char* name) {
  const char* text = std::getenv(name);
  return text && *text ? text : nullptr;
}

[[noreturn]] void refuse(const char* name, const char* value, const std::string& expected) {
  throw Error(std::string(name) + " is '" + value + "': it must be " + expected);
}

// Whether a variable says `other`, and not what holds where it says nothing.
bool choice(const char* name, const char* usual, const char* other) {
  const char* text = variable(name);
  if (!text || !std::strcmp(text, usual)) return false;
  if (std::strcmp(text, other)) refuse(name, text, std::string(usual) + " (the default) or " + other);
  return true;
}

// A whole number in decimal digits, nothing else.
std::optional<uint64_t> whole_number(const char* text) {
  char* end = nullptr;
  errno = 0;
  const uint64_t value = std::strtoull(text, &end, 10);
  if (*text < '0' || *text > '9' || *end || errno) return {};
  return value;
}

}  // namespace

uint64_t seed_setting() {
  const char* text = variable("RKSIM_SEED");
  if (!text) {
    std::random_device device;
    return uint64_t{device()} << 32 | device();
  }
  const auto seed = whole_number(text);
  if (!seed) refuse("RKSIM_SEED", text, "a whole number from 0 to 2^64 - 1");
  return *seed;
}

bool is_running_by_header_setting() { return choice("RKSIM_IS_RUNNING", "measured", "header"); }
bool end_token_told_setting() { return !choice("RKSIM_END_TOKEN", "told", "silent"); }
bool finish_after_pause_setting() { return !choice("RKSIM_PAUSE", "finish", "silent"); }
bool negative_keep_is_prompt_setting() { return !choice("RKSIM_N_KEEP", "prompt", "none"); }
bool last_logits_setting() { return choice("RKSIM_LOGITS", "all", "last"); }
bool half_embeddings_setting() { return choice("RKSIM_EMBED_CALLBACK", "float32", "float16"); }

std::optional<int64_t> past_context_setting() {
  const char* text = variable("RKSIM_PAST_CONTEXT");
  if (!text) return kPastContext;
  if (!std::strcmp(text, "endless")) return {};
  const auto tokens = whole_number(text);
  if (!tokens || *tokens > static_cast<uint64_t>(kMostPastContext))
    refuse("RKSIM_PAST_CONTEXT", text, "endless or a whole number from 0 to " + std::to_string(kMostPastContext));
  return static_cast<int64_t>(*tokens);
}

bool figures_setting() {
  const char* text = variable("RKLLM_LOG_LEVEL");
  return text && std::atoi(text) >= 1;
}

}  // namespace rksim
