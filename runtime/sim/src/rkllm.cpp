// The ten functions of RKLLM 1.1.1 over the engine. docs/sim-runtime.md says what is known of the real one and what
// was chosen here. No exception leaves this file; every refusal is a log line and -1.
#include "rkllm.h"

#include <algorithm>
#include <cerrno>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <string>
#include <utility>

#include "error.h"
#include "log.h"
#include "runtime.h"

namespace {

using rksim::Error;
using rksim::guarded;
using rksim::log_error;
using rksim::log_line;
using rksim::log_warning;
using rksim::Request;
using rksim::Runtime;

constexpr int kDefaultContext = 512;
constexpr int kBoardContext = 4096;  // past it the real 1.1.x degrades
constexpr int kFailed = -1;

uint64_t seed_setting() {
  const char* text = std::getenv("RKSIM_SEED");
  if (!text || !*text) {
    std::random_device device;
    return uint64_t{device()} << 32 | device();
  }
  char* end = nullptr;
  errno = 0;
  const uint64_t seed = std::strtoull(text, &end, 10);
  if (*text < '0' || *text > '9' || *end || errno)
    throw Error(std::string("RKSIM_SEED is '") + text + "': it must be a whole number from 0 to 2^64 - 1");
  return seed;
}

rksim::SamplerParams sampler_params(const RKLLMParam& p) {
  const std::pair<const char*, float> all[] = {{"top_p", p.top_p},
                                               {"temperature", p.temperature},
                                               {"repeat_penalty", p.repeat_penalty},
                                               {"frequency_penalty", p.frequency_penalty},
                                               {"presence_penalty", p.presence_penalty}};
  for (const auto& [name, value] : all)
    if (!std::isfinite(value)) throw Error(std::string(name) + " is not a finite number");
  if (p.repeat_penalty <= 0)
    throw Error("repeat_penalty is " + std::to_string(p.repeat_penalty) + ": it must be above 0; 1 switches it off");
  if (p.mirostat) log_warning("mirostat is not simulated: top_k, top_p and temperature are used");
  rksim::SamplerParams s;
  s.top_k = p.top_k;
  s.top_p = p.top_p;
  s.temperature = p.temperature;
  s.repeat_penalty = p.repeat_penalty;
  s.frequency_penalty = p.frequency_penalty;
  s.presence_penalty = p.presence_penalty;
  s.seed = seed_setting();
  return s;
}

int context_setting(const RKLLMParam& p) {
  const int context = p.max_context_len > 0 ? p.max_context_len : kDefaultContext;
  if (context <= rksim::kAnswerReserve)
    throw Error("max_context_len is " + std::to_string(context) + ": it must be above " +
                std::to_string(rksim::kAnswerReserve));
  return context;
}

// Every live handle; nullptr for one whose rkllm_init lied (RKSIM_FAULTS). Never freed: a run may still be under way
// when the process exits.
struct Registry {
  std::mutex mutex;
  std::map<LLMHandle, std::shared_ptr<Runtime>> live;
};
Registry& registry() {
  static Registry* all = new Registry;
  return *all;
}

// Whether rkllm_init lied about this handle: it has no model behind it.
bool hollow(LLMHandle handle) {
  std::lock_guard lock(registry().mutex);
  const auto it = registry().live.find(handle);
  return it != registry().live.end() && !it->second;
}

// The handle's runtime, kept alive as long as the result; nullptr and a log line for what is no live handle.
std::shared_ptr<Runtime> find(LLMHandle handle, const char* function) {
  std::lock_guard lock(registry().mutex);
  const auto it = registry().live.find(handle);
  if (it != registry().live.end()) return it->second;
  log_error(std::string(function) + ": the handle is " + (handle ? "not one of rkllm_init's, or destroyed" : "NULL"));
  return nullptr;
}

std::shared_ptr<Runtime> find_to_run(LLMHandle handle, const char* function) {
  if (hollow(handle)) rksim::die_without_model();
  return find(handle, function);
}

void say_hello(int threads) {
  log_line("I rkllm", "rkllm-runtime version: 1.1.1, rknpu driver version: 0.9.8, platform: RK3588");
  log_line("I rksim", std::string("simulated runtime, no NPU is used; kernel ") + rksim::kernels().name + ", " +
                          std::to_string(threads) + (threads == 1 ? " thread" : " threads"));
}

std::unique_ptr<rksim::Model> load(const char* path, int threads) {
  try {
    return std::make_unique<rksim::Model>(path, threads);
  } catch (const Error&) {
    log_error("load model file error!");  // as the real one says; the caller's line says why
    throw;
  }
}

int init(LLMHandle* handle, const RKLLMParam* param, LLMResultCallback callback) {
  if (handle) *handle = nullptr;
  const char* missing = !handle              ? "handle"
                        : !param             ? "param"
                        : !callback          ? "callback"
                        : !param->model_path ? "param->model_path"
                                             : nullptr;
  if (missing) throw Error(std::string(missing) + " is NULL");
  const int threads = rksim::default_threads();
  say_hello(threads);
  const rksim::RunParams params{context_setting(*param), param->max_new_tokens, param->skip_special_token,
                                sampler_params(*param), rksim::faults_setting()};
  rksim::sleep_ms(params.faults.load_ms);
  if (params.faults.init_lies && rksim::claim(params.faults)) {
    rksim::say_load_failed();
    *handle = new char;
    std::lock_guard lock(registry().mutex);
    registry().live[*handle] = nullptr;
    return 0;
  }
  const auto runtime = std::make_shared<Runtime>(load(param->model_path, threads), params, callback);
  if (param->is_async) log_warning("is_async is ignored: rkllm_run blocks, rkllm_run_async does not");
  const std::string context = "max_context_len " + std::to_string(params.context);
  if (params.context > runtime->shape().context_length)
    log_warning(context + " is above the " + std::to_string(runtime->shape().context_length) + " of the model");
  if (params.context > kBoardContext)
    log_warning(context + ": on an RK3588, answers degrade past " + std::to_string(kBoardContext) + " tokens");
  std::lock_guard lock(registry().mutex);
  registry().live[runtime.get()] = runtime;
  *handle = runtime.get();
  return 0;
}

// A caller's enum may hold any int, which C++ may not read as the enum.
template <class E>
int raw(const E& value) {
  static_assert(sizeof(E) == sizeof(int));
  int number;
  std::memcpy(&number, &value, sizeof number);
  return number;
}

void check_infer(const RKLLMInferParam& infer) {
  if (raw(infer.mode) < RKLLM_INFER_GENERATE || raw(infer.mode) > RKLLM_INFER_GET_LAST_HIDDEN_LAYER)
    throw Error("unknown infer mode " + std::to_string(raw(infer.mode)));
}

// Copies what the run needs. Throws Error on what no run could make sense of.
Request read_request(const RKLLMInput* input, const RKLLMInferParam* infer, void* userdata, Runtime& runtime) {
  if (!input || !infer) throw Error(std::string(input ? "infer_params" : "input") + " is NULL");
  check_infer(*infer);
  const int type = raw(input->input_type);
  if (type < RKLLM_INPUT_PROMPT || type > RKLLM_INPUT_MULTIMODAL)
    throw Error("unknown input type " + std::to_string(type));
  Request r{input->input_type, infer->mode, userdata, {}, 0, {}, {}, nullptr, {}};
  // A run that names an adapter must not answer without it.
  if (infer->lora_params) {
    if (!infer->lora_params->lora_adapter_name) throw Error("lora_params->lora_adapter_name is NULL");
    r.lora = runtime.lora(infer->lora_params->lora_adapter_name);
  }
  if (infer->prompt_cache_params && infer->prompt_cache_params->save_prompt_cache) {
    const char* path = infer->prompt_cache_params->prompt_cache_path;
    if (!path || !*path) throw Error("prompt_cache_path is NULL or empty");
    if (type == RKLLM_INPUT_EMBED)
      throw Error("a prompt of embeddings has no tokens to find it by: it cannot be saved");
    r.save_cache = path;
  }
  const auto most = static_cast<size_t>(runtime.context());
  switch (input->input_type) {
    case RKLLM_INPUT_PROMPT:
      if (!input->prompt_input) throw Error("prompt_input is NULL");
      r.prompt = input->prompt_input;
      return r;
    case RKLLM_INPUT_TOKEN: {
      const RKLLMTokenInput& given = input->token_input;
      if (!given.input_ids) throw Error("token_input.input_ids is NULL");
      r.tokens = given.n_tokens;
      r.ids.assign(given.input_ids, given.input_ids + std::min(r.tokens, most));
      return r;
    }
    case RKLLM_INPUT_EMBED: {
      const RKLLMEmbedInput& given = input->embed_input;
      if (!given.embed) throw Error("embed_input.embed is NULL");
      r.tokens = given.n_tokens;
      const size_t size = std::min(r.tokens, most) * static_cast<size_t>(runtime.shape().hidden);
      r.embeddings.assign(given.embed, given.embed + size);
      return r;
    }
    case RKLLM_INPUT_MULTIMODAL: break;
  }
  return r;
}

int load_lora(Runtime& runtime, const RKLLMLoraAdapter* adapter) {
  const char* missing = !adapter                      ? "lora_adapter"
                        : !adapter->lora_adapter_path ? "lora_adapter_path"
                        : !adapter->lora_adapter_name ? "lora_adapter_name"
                                                      : nullptr;
  if (missing) throw Error(std::string(missing) + " is NULL");
  if (!*adapter->lora_adapter_name) throw Error("lora_adapter_name is empty: runs choose an adapter by its name");
  if (!std::isfinite(adapter->scale)) throw Error("scale is not a finite number");
  runtime.load_lora(adapter->lora_adapter_path, adapter->lora_adapter_name, adapter->scale);
  return 0;
}

}  // namespace

extern "C" {

RKLLMParam rkllm_createDefaultParam(void) {
  RKLLMParam p{};
  p.max_context_len = kDefaultContext;
  p.max_new_tokens = -1;
  p.top_k = 40;
  p.top_p = 0.9f;
  p.temperature = 0.8f;
  p.repeat_penalty = 1.1f;
  p.mirostat_tau = 5.0f;
  p.mirostat_eta = 0.1f;
  p.skip_special_token = true;
  return p;
}

int rkllm_init(LLMHandle* handle, RKLLMParam* param, LLMResultCallback callback) {
  return guarded("rkllm_init", [&] { return init(handle, param, callback); });
}

int rkllm_load_lora(LLMHandle handle, RKLLMLoraAdapter* lora_adapter) {
  return guarded("rkllm_load_lora", [&] {
    const auto runtime = find_to_run(handle, "rkllm_load_lora");
    return runtime ? load_lora(*runtime, lora_adapter) : kFailed;
  });
}

int rkllm_load_prompt_cache(LLMHandle handle, const char* prompt_cache_path) {
  return guarded("rkllm_load_prompt_cache", [&] {
    const auto runtime = find_to_run(handle, "rkllm_load_prompt_cache");
    if (!runtime) return kFailed;
    if (!prompt_cache_path) throw Error("prompt_cache_path is NULL");
    runtime->load_prompt_cache(prompt_cache_path);
    return 0;
  });
}

int rkllm_release_prompt_cache(LLMHandle handle) {
  return guarded("rkllm_release_prompt_cache", [&] {
    const auto runtime = find_to_run(handle, "rkllm_release_prompt_cache");
    if (!runtime) return kFailed;
    runtime->release_prompt_cache();
    return 0;
  });
}

int rkllm_destroy(LLMHandle handle) {
  return guarded("rkllm_destroy", [&] {
    const auto runtime = find(handle, "rkllm_destroy");
    if (runtime && !runtime->close()) return kFailed;
    std::lock_guard lock(registry().mutex);
    if (!registry().live.erase(handle)) return kFailed;
    if (!runtime) delete static_cast<char*>(handle);
    return 0;
  });
}

int rkllm_run(LLMHandle handle, RKLLMInput* input, RKLLMInferParam* infer_params, void* userdata) {
  return guarded("rkllm_run", [&] {
    const auto runtime = find_to_run(handle, "rkllm_run");
    return runtime ? runtime->run(read_request(input, infer_params, userdata, *runtime)) : kFailed;
  });
}

int rkllm_run_async(LLMHandle handle, RKLLMInput* input, RKLLMInferParam* infer_params, void* userdata) {
  return guarded("rkllm_run_async", [&] {
    const auto runtime = find_to_run(handle, "rkllm_run_async");
    return runtime ? runtime->run_async(read_request(input, infer_params, userdata, *runtime)) : kFailed;
  });
}

int rkllm_abort(LLMHandle handle) {
  return guarded("rkllm_abort", [&] {
    const auto runtime = find(handle, "rkllm_abort");
    return runtime ? runtime->abort() : kFailed;
  });
}

int rkllm_is_running(LLMHandle handle) {
  return guarded("rkllm_is_running", [&] {
    const auto runtime = find(handle, "rkllm_is_running");
    return runtime && runtime->running() ? 0 : 1;
  });
}

}  // extern "C"
