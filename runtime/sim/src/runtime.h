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

#include "chat.h"
#include "event.h"
#include "figures.h"
#include "lora.h"
#include "model.h"
#include "params.h"
#include "process.h"
#include "prompt_cache.h"
#include "request.h"
#include "sequence.h"

namespace rksim {

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
  // Throws Error.
  Runtime(std::unique_ptr<Model> model, const RunParams& params, Listener listener, Helpers helpers = {});
  ~Runtime();

  const Shape& shape() const { return model_->shape; }
  int context() const { return params_.context; }
  const Frame& image() const { return params_.image; }
  size_t sequences() const { return sequences_.size(); }
  void tell_basis() const;  // of hidden states, in the log, where it is not the one that a caller would think of
  void check_takes_embeddings(
      const char* what) const;  // Throws Error for a rotated model: they would be in another basis.

  // Kept under `name` until the end. Throws Error.
  void load_lora(const std::string& path, const std::string& name, float scale);
  const Lora* lora(const std::string& name);  // Throws Error on a name that is not loaded.

  // For every later run, until it is released or another one is loaded. Both throw Error while a run is under way.
  void load_prompt_cache(const std::string& path);
  void release_prompt_cache();

  // How texts become turns from now on, and what is kept of the conversations. All throw Error while a run is under
  // way, and where they cannot do what is asked.
  void replace_template(std::string system, std::string prefix, std::string postfix);
  void set_tools(const std::string& system, const std::string& list, std::string tag);
  void forget(bool but_system);
  // Out of each sequence, where its range is not empty: [sequences()].
  void cut(const std::vector<std::pair<int, int>>& ranges);
  std::vector<int> cached() const;  // tokens in the cache of each sequence

  // As the functions of rkllm.h; -1 and a log line when a run is under way.
  int run(const Requests& requests);
  int run_async(Requests requests);
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
  template <class F>
  void as_a_run(F&& f);
  int work(const Requests& requests, bool asynchronous) noexcept;
  void generate(const Requests& requests);
  void answer(const Requests& requests);
  void prefill(const Requests& requests, std::vector<Outputs>* outputs);
  bool step(const Requests& requests);
  void give_outputs(const Requests& requests);
  void finish(const Requests& requests);
  bool any_live() const;
  void check_idle(const char* what) const;
  Reply give(std::vector<Event> events, const Requests& requests, State state);

  const std::unique_ptr<Model> model_;
  const RunParams params_;
  const Listener listener_;
  const Helpers helpers_;
  Chat chat_;
  std::vector<std::unique_ptr<Sequence>> sequences_;
  Figures figures_;
  size_t tokens_ = 0;  // of the answers of the run at hand
  bool over_ = false;  // FINISH or ERROR was given, or a callback is owed none
  bool paused_ = false;
  std::vector<std::unique_ptr<std::vector<Outputs>>> kept_;  // what some releases free no sooner than the handle

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
