// One run as its caller asked for it, copied: rkllm_run_async returns before it is used.
#pragma once
#include <string>
#include <vector>

#include "rkllm.h"

namespace rksim {

class Lora;
class Runtime;

struct Request {
  RKLLMInputType type = RKLLM_INPUT_PROMPT;
  RKLLMInferMode mode = RKLLM_INFER_GENERATE;
  void* userdata = nullptr;
  std::string prompt;             // of text and of text with images
  size_t tokens = 0;              // of ids, embeddings or images; more than the context holds are not copied
  std::vector<int32_t> ids;       // [tokens]
  std::vector<float> embeddings;  // [tokens][hidden], also those of images
  const Lora* lora = nullptr;     // of the runtime's own; nullptr: the model alone
  std::string save_cache;         // where the prompt's keys and values go; empty: nowhere
};

// Throws Error on what no run could make sense of. `infer` NULL: plain generation, with a warning.
Request read_request(const RKLLMInput* input, const RKLLMInferParam* infer, void* userdata, Runtime& runtime);

}  // namespace rksim
