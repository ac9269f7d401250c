// A release's functions over the engine. docs/sim-runtime.md says what is known of the real one and what was chosen
// here. No exception leaves this file; every refusal is a log line and -1.
#include <sys/uio.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <memory>
#include <string>
#include <utility>

#include "../error.h"
#include "../log.h"
#include "../process.h"
#include "../registry.h"
#include "../settings.h"
#include "abi.h"
#include "caller.h"

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

constexpr int kFailed = -1;
constexpr bool kHeaderDiffers = RKSIM_ABI < 131;  // what it says of rkllm_is_running is not what was measured

// For whoever looks into the file before it is loaded, as there is one in Rockchip's.
[[gnu::used]] const char kVersionText[] = "librkllmrt version: " RKSIM_RELEASE " (simulated)";

// Of the last rkllm_init: rkllm_is_running is asked of handles that are no more, too.
std::atomic<bool> is_running_by_header{false};

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
  log_line("I rkllm", "rkllm-runtime version: " RKSIM_RELEASE ", rknpu driver version: 0.9.8, platform: RK3588");
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

int init(LLMHandle* handle, const RKLLMParam* param, rksim::abi::Callback callback) {
  if (handle) *handle = nullptr;
  const char* missing = !handle ? "handle" : !param ? "param" : !param->model_path ? "param->model_path" : nullptr;
  if (missing) throw Error(std::string(missing) + " is NULL");
  const int threads = rksim::default_threads();
  // Before the model loads: a program may free or reuse its memory meanwhile, as garbage collectors do.
  rksim::abi::Init given = rksim::abi::read_params(param);
  rksim::abi::check_callback(callback);
  auto listener = rksim::abi::make_listener(callback);
  auto helpers = rksim::abi::make_helpers(callback);
  say_hello(threads);
  is_running_by_header = rksim::is_running_by_header_setting();
  rksim::abi::read_settings(given);
  const rksim::RunParams& run = given.run;
  rksim::sleep_ms(run.faults.load_ms);
  if (run.faults.init_lies && rksim::claim(run.faults)) {
    rksim::say_load_failed();
    *handle = rksim::enlist(nullptr);
    return 0;
  }
  auto model = load(given.path, threads);
  if (!listener) log_warning("callback is NULL: runs keep their answers to themselves");
  if (given.given.is_async) log_warning("is_async is ignored: rkllm_run blocks, rkllm_run_async does not");
  rksim::abi::check_context(given, model->shape);
  *handle = rksim::enlist(std::make_shared<Runtime>(std::move(model), run, std::move(listener), std::move(helpers)));
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

#if RKSIM_ABI >= 120
std::string text_of(const char* text) { return text ? text : ""; }
#endif

#if RKSIM_ABI >= 123
// All, all but the system prompt, or a range of each sequence where one is given that is not empty.
void clear(Runtime& runtime, int keep_system_prompt, const int* begin, const int* end) {
  if ((begin == nullptr) != (end == nullptr)) throw Error("start_pos and end_pos: one is NULL, and the other is not");
  std::vector<std::pair<int, int>> ranges(runtime.sequences());
  bool any = false;
  for (size_t i = 0; begin && i < ranges.size(); i++) {
    ranges[i] = {begin[i], end[i]};
    any = any || begin[i] != end[i];
  }
  if (any)
    runtime.cut(ranges);
  else
    runtime.forget(keep_system_prompt != 0);
}
#endif

// A run that goes on in this very thread is aborted, so that destroying works once it is over.
int destroy(LLMHandle handle) {
  const rksim::Found found = look_up(handle);
  if (found.standing == Standing::kUnknown) find(handle, "rkllm_destroy");  // says so
  if (found.runtime && !found.runtime->close()) return kFailed;
  return rksim::strike_out(handle) ? 0 : kFailed;
}

}  // namespace

extern "C" {

RKLLMParam rkllm_createDefaultParam(void) { return rksim::abi::default_params(); }

int rkllm_init(LLMHandle* handle, RKLLMParam* param, rksim::abi::Callback callback) {
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
    return runtime ? runtime->run(rksim::abi::read_requests(input, infer_params, userdata, *runtime)) : kFailed;
  });
}

int rkllm_run_async(LLMHandle handle, RKLLMInput* input, RKLLMInferParam* infer_params, void* userdata) {
  return entered("rkllm_run_async", [&] {
    const auto runtime = find_to_run(handle, "rkllm_run_async");
    return runtime ? runtime->run_async(rksim::abi::read_requests(input, infer_params, userdata, *runtime)) : kFailed;
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
    return running != (kHeaderDiffers && is_running_by_header) ? 1 : 0;
  });
}

#if RKSIM_ABI >= 123
int rkllm_clear_kv_cache(LLMHandle handle, int keep_system_prompt, int* start_pos, int* end_pos) {
  return entered("rkllm_clear_kv_cache", [&] {
    const auto runtime = find_to_run(handle, "rkllm_clear_kv_cache");
    if (!runtime) return kFailed;
    clear(*runtime, keep_system_prompt, start_pos, end_pos);
    return 0;
  });
}

int rkllm_get_kv_cache_size(LLMHandle handle, int* cache_sizes) {
  return entered("rkllm_get_kv_cache_size", [&] {
    const auto runtime = find_to_run(handle, "rkllm_get_kv_cache_size");
    if (!runtime) return kFailed;
    if (!cache_sizes) throw Error("cache_sizes is NULL");
    for (const int size : runtime->cached()) *cache_sizes++ = size;
    return 0;
  });
}

int rkllm_set_function_tools(LLMHandle handle, const char* system_prompt, const char* tools,
                             const char* tool_response_str) {
  return entered("rkllm_set_function_tools", [&] {
    const auto runtime = find_to_run(handle, "rkllm_set_function_tools");
    if (!runtime) return kFailed;
    if (!tools) throw Error("tools is NULL");
    runtime->set_tools(text_of(system_prompt), tools, text_of(tool_response_str));
    return 0;
  });
}

int rkllm_set_cross_attn_params(LLMHandle handle, RKLLMCrossAttnParam*) {
  return entered("rkllm_set_cross_attn_params", [&] {
    if (find_to_run(handle, "rkllm_set_cross_attn_params"))
      log_error("rkllm_set_cross_attn_params: cross attention is not simulated");
    return kFailed;
  });
}
#elif RKSIM_ABI >= 120
int rkllm_clear_kv_cache(LLMHandle handle, int keep_system_prompt) {
  return entered("rkllm_clear_kv_cache", [&] {
    const auto runtime = find_to_run(handle, "rkllm_clear_kv_cache");
    if (!runtime) return kFailed;
    runtime->forget(keep_system_prompt != 0);
    return 0;
  });
}
#endif

#if RKSIM_ABI >= 120
int rkllm_set_chat_template(LLMHandle handle, const char* system_prompt, const char* prompt_prefix,
                            const char* prompt_postfix) {
  return entered("rkllm_set_chat_template", [&] {
    const auto runtime = find_to_run(handle, "rkllm_set_chat_template");
    if (!runtime) return kFailed;
    runtime->replace_template(text_of(system_prompt), text_of(prompt_prefix), text_of(prompt_postfix));
    return 0;
  });
}
#endif

}  // extern "C"
