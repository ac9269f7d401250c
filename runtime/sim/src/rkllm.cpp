// The ten functions of RKLLM 1.1.1 over the engine. docs/sim-runtime.md says what is known of the real one and what
// was chosen here. No exception leaves this file; every refusal is a log line and -1.
#include "rkllm.h"

#include <sys/uio.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <utility>

#include "error.h"
#include "log.h"
#include "process.h"
#include "registry.h"
#include "request.h"
#include "runtime.h"
#include "settings.h"

namespace {

using rksim::Error;
using rksim::guarded;
using rksim::Inside;
using rksim::log_error;
using rksim::log_line;
using rksim::log_warning;
using rksim::look_up;
using rksim::Runtime;
using rksim::Standing;

constexpr int kDefaultContext = 512;
constexpr int kBoardContext = 4096;  // past it the real 1.1.x degrades
constexpr int kFailed = -1;

// Of the last rkllm_init: rkllm_is_running is asked of handles that are no more, too.
std::atomic<bool> is_running_by_header{false};

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
  s.seed = rksim::seed_setting();
  return s;
}

int context_setting(const RKLLMParam& p) {
  const int context = p.max_context_len > 0 ? p.max_context_len : kDefaultContext;
  if (context <= rksim::kAnswerReserve)
    throw Error("max_context_len is " + std::to_string(context) + ": it must be above " +
                std::to_string(rksim::kAnswerReserve));
  return context;
}

// The handle's runtime, kept alive as long as the result; nullptr and a log line for what is no live handle.
std::shared_ptr<Runtime> find(LLMHandle handle, const char* function) {
  const rksim::Found found = look_up(handle);
  if (found.standing == Standing::kUnknown)
    log_error(std::string(function) + ": the handle is " + (handle ? "not one of rkllm_init's, or destroyed" : "NULL"));
  if (found.standing == Standing::kLost)
    log_error(std::string(function) +
              ": this process was forked while another thread used the handle: it is of no "
              "use here, load the model again");
  return found.runtime;
}

std::shared_ptr<Runtime> find_to_run(LLMHandle handle, const char* function) {
  if (look_up(handle).standing == Standing::kHollow) rksim::die_without_model();
  return find(handle, function);
}

// f() inside the library, unless this thread is there already: what a signal handler interrupted may hold a lock, of
// malloc's for one, that f would wait for without end. So the refusal takes none, and writes straight to stderr.
template <class F>
int entered(const char* function, F&& f) noexcept {
  if (Inside::here()) {
    const char* parts[] = {
        "E rkllm: ", function,
        ": refused, it was called by a signal handler that interrupted the library in this thread\n"};
    iovec line[3];
    for (int i = 0; i < 3; i++) line[i] = {const_cast<char*>(parts[i]), std::strlen(parts[i])};
    const int error = errno;
    (void)!writev(STDERR_FILENO, line, 3);
    errno = error;
    return kFailed;
  }
  Inside inside;
  return guarded(function, std::forward<F>(f));
}

void say_hello(int threads) {
  log_line("I rkllm", "rkllm-runtime version: 1.1.1, rknpu driver version: 0.9.8, platform: RK3588");
  log_line("I rksim", std::string("simulated runtime, no NPU is used; kernel ") + rksim::kernels().name + ", " +
                          std::to_string(threads) + (threads == 1 ? " thread" : " threads"));
}

std::unique_ptr<rksim::Model> load(const std::string& path, int threads) {
  try {
    return std::make_unique<rksim::Model>(path, threads);
  } catch (const Error&) {
    log_error("load model file error!");  // as the real one says; the caller's line says why
    throw;
  }
}

std::string text_of(const char* text) { return text ? text : ""; }

void warn(const RKLLMParam& p, int context, const Runtime& runtime, bool heard) {
  if (!heard) log_warning("callback is NULL: runs keep their answers to themselves");
  if (p.is_async) log_warning("is_async is ignored: rkllm_run blocks, rkllm_run_async does not");
  const std::string said = "max_context_len " + std::to_string(context);
  if (context > runtime.shape().context_length)
    log_warning(said + " is above the " + std::to_string(runtime.shape().context_length) + " of the model");
  if (context > kBoardContext)
    log_warning(said + ": on an RK3588, answers degrade past " + std::to_string(kBoardContext) + " tokens");
}

int init(LLMHandle* handle, const RKLLMParam* param, LLMResultCallback callback) {
  if (handle) *handle = nullptr;
  const char* missing = !handle ? "handle" : !param ? "param" : !param->model_path ? "param->model_path" : nullptr;
  if (missing) throw Error(std::string(missing) + " is NULL");
  // First of all: a program may free or reuse its strings while the model loads, as garbage collectors do.
  const RKLLMParam p = *param;
  const std::string path = p.model_path;
  const rksim::ImageFrame image{text_of(p.img_start), text_of(p.img_content), text_of(p.img_end)};
  const int threads = rksim::default_threads();
  say_hello(threads);
  is_running_by_header = rksim::is_running_by_header_setting();
  const rksim::RunParams params{context_setting(p),
                                p.max_new_tokens,
                                p.skip_special_token,
                                sampler_params(p),
                                rksim::faults_setting(),
                                image,
                                rksim::past_context_setting(),
                                rksim::figures_setting()};
  rksim::sleep_ms(params.faults.load_ms);
  if (params.faults.init_lies && rksim::claim(params.faults)) {
    rksim::say_load_failed();
    *handle = rksim::enlist(nullptr);
    return 0;
  }
  auto runtime = std::make_shared<Runtime>(load(path, threads), params, callback);
  warn(p, params.context, *runtime, callback != nullptr);
  *handle = rksim::enlist(std::move(runtime));
  return 0;
}

// What its caller gave, copied before the handle is looked for.
struct Adapter {
  explicit Adapter(const RKLLMLoraAdapter* given) {
    const char* missing = !given                      ? "lora_adapter"
                          : !given->lora_adapter_path ? "lora_adapter_path"
                          : !given->lora_adapter_name ? "lora_adapter_name"
                                                      : nullptr;
    if (missing) throw Error(std::string(missing) + " is NULL");
    path = given->lora_adapter_path;
    name = given->lora_adapter_name;
    scale = given->scale;
    if (name.empty()) throw Error("lora_adapter_name is empty: runs choose an adapter by its name");
    if (!std::isfinite(scale)) throw Error("scale is not a finite number");
  }
  std::string path, name;
  float scale;
};

// A run that goes on in this very thread is aborted, so that destroying works once it is over.
int destroy(LLMHandle handle) {
  const rksim::Found found = look_up(handle);
  if (found.standing == Standing::kUnknown) find(handle, "rkllm_destroy");  // says so
  if (found.runtime && !found.runtime->close()) return kFailed;
  return rksim::strike_out(handle) ? 0 : kFailed;
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
  return entered("rkllm_init", [&] { return init(handle, param, callback); });
}

int rkllm_load_lora(LLMHandle handle, RKLLMLoraAdapter* lora_adapter) {
  return entered("rkllm_load_lora", [&] {
    const auto runtime = find_to_run(handle, "rkllm_load_lora");
    if (!runtime) return kFailed;
    const Adapter adapter(lora_adapter);
    runtime->load_lora(adapter.path, adapter.name, adapter.scale);
    return 0;
  });
}

int rkllm_load_prompt_cache(LLMHandle handle, const char* prompt_cache_path) {
  return entered("rkllm_load_prompt_cache", [&] {
    const auto runtime = find_to_run(handle, "rkllm_load_prompt_cache");
    if (!runtime) return kFailed;
    if (!prompt_cache_path) throw Error("prompt_cache_path is NULL");
    runtime->load_prompt_cache(prompt_cache_path);
    return 0;
  });
}

int rkllm_release_prompt_cache(LLMHandle handle) {
  return entered("rkllm_release_prompt_cache", [&] {
    const auto runtime = find_to_run(handle, "rkllm_release_prompt_cache");
    if (!runtime) return kFailed;
    runtime->release_prompt_cache();
    return 0;
  });
}

int rkllm_destroy(LLMHandle handle) {
  if (Inside::here()) rkllm_abort(handle);  // so that it may be destroyed soon
  return entered("rkllm_destroy", [&] { return destroy(handle); });
}

int rkllm_run(LLMHandle handle, RKLLMInput* input, RKLLMInferParam* infer_params, void* userdata) {
  return entered("rkllm_run", [&] {
    const auto runtime = find_to_run(handle, "rkllm_run");
    return runtime ? runtime->run(rksim::read_request(input, infer_params, userdata, *runtime)) : kFailed;
  });
}

int rkllm_run_async(LLMHandle handle, RKLLMInput* input, RKLLMInferParam* infer_params, void* userdata) {
  return entered("rkllm_run_async", [&] {
    const auto runtime = find_to_run(handle, "rkllm_run_async");
    return runtime ? runtime->run_async(rksim::read_request(input, infer_params, userdata, *runtime)) : kFailed;
  });
}

// These two may be called at any moment, also from a signal handler: they allocate nothing for a handle that lives.
int rkllm_abort(LLMHandle handle) {
  return guarded("rkllm_abort", [&] {
    const auto runtime = find(handle, "rkllm_abort");
    return runtime ? runtime->abort() : kFailed;
  });
}

int rkllm_is_running(LLMHandle handle) {
  return guarded("rkllm_is_running", [&] {
    const auto runtime = find(handle, "rkllm_is_running");
    const bool running = runtime && runtime->running();
    return running != is_running_by_header ? 1 : 0;
  });
}

}  // extern "C"
