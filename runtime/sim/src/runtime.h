// What an LLMHandle stands for: a model, its parameters, and one run at a time that speaks to the callback.
#pragma once
#include <atomic>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "faults.h"
#include "lora.h"
#include "model.h"
#include "prompt_cache.h"
#include "rkllm.h"
#include "sampler.h"

namespace rksim {

constexpr int kAnswerReserve = 4;  // positions of the context that a prompt may not take

// What a run needs of its caller's memory, copied: rkllm_run_async returns before it is used.
struct Request {
  RKLLMInputType type;
  RKLLMInferMode mode;
  void* userdata;
  std::string prompt;
  size_t tokens = 0;  // of ids or embeddings, of which no more are copied than the context holds
  std::vector<int32_t> ids;
  std::vector<float> embeddings;  // tokens x hidden
  const Lora* lora = nullptr;     // of the runtime's own; nullptr: the model alone
  std::string save_cache;         // where the prompt's keys and values go; empty: nowhere
};

struct RunParams {
  int context;         // positions of the KV cache
  int max_new_tokens;  // negative: until the end of the answer
  bool skip_special;
  SamplerParams sampler;
  Faults faults;
};

// The mutex guards who runs and which adapters there are; all else belongs to the run.
class Runtime {
 public:
  // Throws Error.
  Runtime(std::unique_ptr<Model> model, const RunParams& params, LLMResultCallback callback);

  const Shape& shape() const { return model_->shape; }
  int context() const { return params_.context; }

  // Kept under `name` until the end. Throws Error.
  void load_lora(const std::string& path, const std::string& name, float scale);
  const Lora* lora(const std::string& name);  // Throws Error on a name that is not loaded.

  // For every later run, until it is released or another one is loaded. Both throw Error while a run is under way.
  void load_prompt_cache(const std::string& path);
  void release_prompt_cache();

  // As the functions of rkllm.h; -1 and a log line when a run is under way.
  int run(const Request& request);
  int run_async(Request request);
  int abort();  // -1 when nothing runs
  bool running();
  // Refuses further runs, aborts the one at hand and waits for it. False, and nothing done: from inside the callback,
  // or closed already.
  bool close();

 private:
  bool begin();
  void end();
  int work(const Request& request) noexcept;
  void generate(const Request& request);
  std::vector<int32_t> prompt_ids(const Request& request) const;
  void check_room(size_t tokens) const;
  const float* prefill(const Request& request, std::vector<float>* all_hidden);
  size_t reuse_cache(const std::vector<int32_t>& ids, const Lora* lora);
  CacheKey cache_key(const Lora* lora) const;
  void check_idle() const;
  void give_hidden_states(const Request& request);
  void give_token(int32_t id, const Request& request);
  void give(RKLLMResult result, const Request& request, LLMCallState state);

  const std::unique_ptr<Model> model_;
  const RunParams params_;
  const LLMResultCallback callback_;
  Session session_;
  Sampler sampler_;

  std::string held_;      // text that ends inside a character, until the token that completes it
  bool at_start_ = true;  // nothing of the answer was given yet
  bool over_ = false;     // FINISH or ERROR was given

  std::mutex mutex_;
  std::condition_variable idle_;
  std::thread worker_;
  std::thread::id runner_;
  bool running_ = false, closing_ = false;
  std::map<std::string, std::unique_ptr<Lora>> loras_;
  std::unique_ptr<PromptCache> cache_;
  std::atomic<bool> aborted_{false};
};

}  // namespace rksim
