// What an LLMHandle stands for: a model, its parameters, and one run at a time that speaks to the callback.
#pragma once
#include <semaphore.h>

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "faults.h"
#include "figures.h"
#include "lora.h"
#include "model.h"
#include "process.h"
#include "prompt_cache.h"
#include "request.h"
#include "rkllm.h"
#include "sampler.h"

namespace rksim {

constexpr int kAnswerReserve = 4;  // positions of the context that a prompt may not take

// The texts around an image and, on a board, in the place of each of its embeddings.
struct ImageFrame {
  std::string start, content, end;
};

struct RunParams {
  int context;         // positions of the KV cache
  int max_new_tokens;  // negative: until the end of the answer
  bool skip_special;
  SamplerParams sampler;
  Faults faults;
  ImageFrame image;
  std::optional<int64_t> past_context;  // tokens that an answer may outgrow the context by; none: without end
  bool figures;                         // print them after each run
};

// Held for moments only, and never while a callback or a wait goes on.
class Lock {
 public:
  explicit Lock(std::mutex& mutex) : lock_(mutex) {}

 private:
  SignalsHeld held_;  // first: a handler must not find this thread with the lock
  std::lock_guard<std::mutex> lock_;
};

// The mutex guards who runs and which adapters there are; all else belongs to the run.
class Runtime {
 public:
  // callback NULL: nobody is told. Throws Error.
  Runtime(std::unique_ptr<Model> model, const RunParams& params, LLMResultCallback callback);
  ~Runtime();

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

  // Around a fork: takes the lock (false: it was not to be had in a second), and gives it back on either side.
  bool lock_for_fork() { return lock_within_a_second(mutex_); }
  void unlock_after_fork() { mutex_.unlock(); }
  // In the child, under that lock: whether its only thread may go on with this object. Not where another one was at it.
  bool survives_fork();

 private:
  bool begin();
  void end();
  int work(const Request& request) noexcept;
  void generate(const Request& request);
  size_t answer(const Request& request, int32_t& id);
  bool past_context() const;
  std::vector<int32_t> text_ids(const Request& request) const;
  std::vector<int32_t> image_prompt(const Request& request) const;
  void check_room(size_t tokens) const;
  const float* prefill(const Request& request, std::vector<float>* all_hidden);
  const float* prefill_tokens(const Request& request, std::vector<float>* all_hidden);
  const float* prefill_embeddings(const std::vector<float>& x, std::vector<float>* all_hidden);
  const float* prefill_images(const Request& request, std::vector<float>* all_hidden);
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
  Figures figures_;

  std::string held_;      // text that ends inside a character, until the token that completes it
  bool at_start_ = true;  // nothing of the answer was given yet
  bool over_ = false;     // FINISH or ERROR was given

  std::mutex mutex_;
  sem_t over_while_closing_;  // no condition variable: who waits for it holds no lock that a signal handler could want
  std::shared_ptr<std::thread> worker_;
  std::thread::id runner_;
  bool running_ = false, closing_ = false;
  std::map<std::string, std::unique_ptr<Lora>> loras_;
  std::unique_ptr<PromptCache> cache_;
  std::atomic<bool> aborted_{false};
};

}  // namespace rksim
