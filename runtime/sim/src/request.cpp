#include "request.h"

#include <cstring>
#include <string>

#include "error.h"
#include "log.h"
#include "runtime.h"

namespace rksim {
namespace {

// Where a run that names no file saves its prompt cache (the manual's table 3-17).
constexpr const char* kDefaultCachePath = "./prompt_cache.bin";

// A caller's enum may hold any int, which C++ may not read as the enum.
template <class E>
int raw(const E& value) {
  static_assert(sizeof(E) == sizeof(int));
  int number;
  std::memcpy(&number, &value, sizeof number);
  return number;
}

template <class T>
const T* need(const T* pointer, const char* name) {
  if (!pointer) throw Error(std::string(name) + " is NULL");
  return pointer;
}

void copy_embeddings(Request& r, const float* values, size_t tokens, const Runtime& runtime) {
  r.tokens = tokens;
  if (tokens > static_cast<size_t>(runtime.context())) return;  // refused before they are looked at
  r.embeddings.assign(values, values + tokens * static_cast<size_t>(runtime.shape().hidden));
}

// First of all: the caller's memory is not looked at again.
void copy_input(Request& r, const RKLLMInput& input, const Runtime& runtime) {
  switch (r.type) {
    case RKLLM_INPUT_PROMPT: r.prompt = need(input.prompt_input, "prompt_input"); return;
    case RKLLM_INPUT_TOKEN: {
      const int32_t* ids = need(input.token_input.input_ids, "token_input.input_ids");
      r.tokens = input.token_input.n_tokens;
      if (r.tokens <= static_cast<size_t>(runtime.context())) r.ids.assign(ids, ids + r.tokens);
      return;
    }
    case RKLLM_INPUT_EMBED:
      copy_embeddings(r, need(input.embed_input.embed, "embed_input.embed"), input.embed_input.n_tokens, runtime);
      return;
    case RKLLM_INPUT_MULTIMODAL:
      r.prompt = need(input.multimodal_input.prompt, "multimodal_input.prompt");
      copy_embeddings(r, need(input.multimodal_input.image_embed, "multimodal_input.image_embed"),
                      input.multimodal_input.n_image_tokens, runtime);
      return;
  }
}

void read_cache(Request& r, const RKLLMPromptCacheParam& cache) {
  if (!cache.save_prompt_cache) return;
  r.save_cache = cache.prompt_cache_path ? cache.prompt_cache_path : kDefaultCachePath;
  if (r.save_cache.empty()) throw Error("prompt_cache_path is empty");
  if (r.type == RKLLM_INPUT_EMBED || r.type == RKLLM_INPUT_MULTIMODAL)
    throw Error("a prompt of embeddings has no tokens to find it by: it cannot be saved");
}

}  // namespace

Request read_request(const RKLLMInput* input, const RKLLMInferParam* infer, void* userdata, Runtime& runtime) {
  const int type = raw(need(input, "input")->input_type), mode = infer ? raw(infer->mode) : RKLLM_INFER_GENERATE;
  if (mode < RKLLM_INFER_GENERATE || mode > RKLLM_INFER_GET_LAST_HIDDEN_LAYER)
    throw Error("unknown infer mode " + std::to_string(mode));
  if (type < RKLLM_INPUT_PROMPT || type > RKLLM_INPUT_MULTIMODAL)
    throw Error("unknown input type " + std::to_string(type));
  Request r;
  r.type = static_cast<RKLLMInputType>(type);
  r.mode = static_cast<RKLLMInferMode>(mode);
  r.userdata = userdata;
  copy_input(r, *input, runtime);
  if (!infer) {
    log_warning("infer_params is NULL: RKLLM_INFER_GENERATE without LoRA and prompt cache is taken");
    return r;
  }
  if (infer->prompt_cache_params) read_cache(r, *infer->prompt_cache_params);
  // A run that names an adapter must not answer without it.
  if (infer->lora_params)
    r.lora = runtime.lora(need(infer->lora_params->lora_adapter_name, "lora_params->lora_adapter_name"));
  return r;
}

}  // namespace rksim
