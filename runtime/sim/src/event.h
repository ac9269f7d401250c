// What a run tells its caller, whatever the structs of the release that the caller speaks.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace rksim {

enum class State { kToken, kWaiting, kFinish, kError, kHidden, kLogits };

// [count][size]
struct Rows {
  const float* values = nullptr;
  int size = 0, count = 0;
};

struct Perf {
  float prefill_ms = 0;
  int prefill_tokens = 0;
  float generate_ms = 0;
  int generate_tokens = 0;
  float memory_mb = 0;  // the most that this process held
};

struct Event {
  const char* text = "";  // may be nullptr
  int32_t id = -1;
  Rows hidden, logits;
  Perf perf;
};

// What a callback's return value asks for.
enum class Reply { kGoOn, kPause, kFree };

// One event for each sequence of the handle; nullptr: a result that is NULL (RKSIM_FAULTS). Empty: nobody listens.
using Listener = std::function<Reply(const std::vector<Event>* events, void* userdata, State state)>;

// Parts of a run that its caller may do. Empty: they are the model's own. Both throw Error.
struct Helpers {
  std::function<std::vector<int32_t>(const std::string& text, size_t most)> tokenize;
  std::function<void(const int32_t* ids, size_t n, size_t hidden, float* out)> embed;  // out: [n][hidden]
};

}  // namespace rksim
