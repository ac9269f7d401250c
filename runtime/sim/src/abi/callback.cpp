// From the engine's events to a release's results, and to its other callbacks.
#include "../error.h"
#include "../kernels.h"
#include "../settings.h"
#include "abi.h"
#include "caller.h"

namespace rksim::abi {
namespace {

RKLLMResult result_of(const Event& e) {
  RKLLMResult r{};
  r.text = e.text;
  r.token_id = e.id;
  r.last_hidden_layer = {e.hidden.values, e.hidden.size, e.hidden.count};
#if RKSIM_ABI >= 120
  r.logits = {e.logits.values, e.logits.size, e.logits.count};
#endif
#if RKSIM_ABI >= 123
  r.perf = {e.perf.prefill_ms, e.perf.prefill_tokens, e.perf.generate_ms, e.perf.generate_tokens, e.perf.memory_mb};
#endif
  return r;
}

LLMCallState state_of(State state) {
  switch (state) {
    case State::kWaiting: return RKLLM_RUN_WAITING;
    case State::kFinish: return RKLLM_RUN_FINISH;
    case State::kError: return RKLLM_RUN_ERROR;
#if RKSIM_ABI < 120
    case State::kHidden: return RKLLM_RUN_GET_LAST_HIDDEN_LAYER;
#endif
    default: return RKLLM_RUN_NORMAL;
  }
}

Reply call(LLMResultCallback function, const std::vector<Event>* events, void* userdata, State state) {
  std::vector<RKLLMResult> results;
  if (events)
    for (const Event& event : *events) results.push_back(result_of(event));
  RKLLMResult* given = events ? results.data() : nullptr;
#if RKSIM_ABI < 123
  function(given, userdata, state_of(state));
  return Reply::kGoOn;
#else
  const int reply = function(given, userdata, state_of(state));
  if (reply == 1) return Reply::kPause;
  return RKSIM_ABI >= 131 && reply == 2 ? Reply::kFree : Reply::kGoOn;
#endif
}

#if RKSIM_ABI >= 131
void check_function(const void* function, const char* name) {
  expect(!function || executable(function), std::string("callback->") + name + " is no function", "1.2");
}

std::vector<int32_t> tokenized(const RKLLMCallback& c, const std::string& text, size_t most) {
  std::vector<int32_t> ids(most);
  const int n = c.tokenizer_callback(c.tokenizer_userdata, text.c_str(), static_cast<int32_t>(text.size()), ids.data(),
                                     static_cast<int32_t>(most));
  if (n < 0 || static_cast<size_t>(n) > most)
    throw Error("tokenizer_callback returned " + std::to_string(n) + ": it has to be how many tokens there are, of " +
                std::to_string(most) + " at most");
  ids.resize(static_cast<size_t>(n));
  return ids;
}

void embedded(const RKLLMCallback& c, const int32_t* ids, size_t n, size_t hidden, bool half, float* out) {
  std::vector<int32_t> copy(ids, ids + n);
  std::vector<uint16_t> halves(half ? n * hidden : 0);
  void* to = half ? static_cast<void*>(halves.data()) : out;
  const int failed = c.embed_callback(c.embed_userdata, copy.data(), n, to, n * hidden * (half ? 2 : sizeof(float)));
  if (failed) throw Error("embed_callback returned " + std::to_string(failed) + ", not 0");
  if (half) kernels().from_f16(halves.data(), out, static_cast<int64_t>(n * hidden));
}
#endif

}  // namespace

#if RKSIM_ABI >= 131
void check_callback(RKLLMCallback* callback) {
  if (!callback) return;
  expect(readable(callback) && readable(callback + 1), "callback is no readable address", "1.2");
  const RKLLMCallback c = copied(callback);
  check_function(reinterpret_cast<const void*>(c.result_callback), "result_callback");
  check_function(reinterpret_cast<const void*>(c.tokenizer_callback), "tokenizer_callback");
  check_function(reinterpret_cast<const void*>(c.embed_callback), "embed_callback");
}

Listener make_listener(RKLLMCallback* callback) {
  if (!callback || !callback->result_callback) return {};
  return [c = *callback](const std::vector<Event>* events, void* userdata, State state) {
    return call(c.result_callback, events, userdata ? userdata : c.result_userdata, state);
  };
}

Helpers make_helpers(RKLLMCallback* callback) {
  Helpers helpers;
  if (!callback) return helpers;
  const RKLLMCallback c = *callback;
  if (c.tokenizer_callback)
    helpers.tokenize = [c](const std::string& text, size_t most) { return tokenized(c, text, most); };
  if (c.embed_callback)
    helpers.embed = [c, half = half_embeddings_setting()](const int32_t* ids, size_t n, size_t hidden, float* out) {
      embedded(c, ids, n, hidden, half, out);
    };
  return helpers;
}
#else
void check_callback(LLMResultCallback callback) {
  expect(!callback || executable(reinterpret_cast<const void*>(callback)), "callback is no function", "1.3");
}

Listener make_listener(LLMResultCallback callback) {
  if (!callback) return {};
  return [callback](const std::vector<Event>* events, void* userdata, State state) {
    return call(callback, events, userdata, state);
  };
}

Helpers make_helpers(LLMResultCallback) { return {}; }
#endif

}  // namespace rksim::abi
