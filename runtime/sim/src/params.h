// What a handle was made with: its caller's parameters, the environment's settings, and what its release does
// otherwise.
#pragma once
#include <cstdint>
#include <optional>

#include "faults.h"
#include "request.h"
#include "sampler.h"

namespace rksim {

constexpr int kAnswerReserve = 4;  // positions of the context that a prompt may not take

// How a release behaves; as 1.1 does where nothing is said. docs/sim-runtime.md has what is known of each.
struct Ways {
  bool history = false;         // conversations are kept, and what prompts have in common is not computed again
  bool quiet_refusal = false;   // a prompt that is too long ends the call without an event
  bool tells_end = false;       // the token that ends an answer comes as one without text
  bool keeps_outputs = false;   // hidden states and logits stay in memory until the handle is destroyed
  bool pauses = false;          // a callback may pause a run
  bool finishes_paused = true;  // and then a FINISH comes
  bool keeps_prompt = true;     // what n_keep below 0 keeps of a full window: the prompt
  bool last_logits = false;     // of a prompt, and not those of all its tokens
};

struct RunParams {
  int context = 0;          // positions of the KV cache
  int max_new_tokens = -1;  // negative: until the end of the answer
  bool skip_special = true;
  SamplerParams sampler;
  Faults faults;
  std::optional<int64_t> past_context;  // tokens that an answer may outgrow the context by; none: without end
  bool figures = false;                 // print them after each run
  bool ignore_end = false;              // an end token ends no answer
  int keep = 0;                         // positions that stay when the window is shifted; negative: see Ways
  int sequences = 1;                    // prompts at a time
  Frame image;                          // of releases where it is the handle's
  Ways ways;
};

}  // namespace rksim
