// A handle: what it holds, and who may run. run.cpp has the course of a run.
#include "runtime.h"

#include <cerrno>
#include <utility>

#include "error.h"
#include "log.h"

namespace rksim {

Runtime::Runtime(std::unique_ptr<Model> model, const RunParams& params, Listener listener, Helpers helpers)
    : model_(std::move(model)), params_(params), listener_(std::move(listener)), helpers_(std::move(helpers)) {
  if (helpers_.embed) check_takes_embeddings("embed_callback");
  if (params_.ways.history) chat_ = Chat(model_->file);
  for (int i = 0; i < params_.sequences; i++)
    sequences_.push_back(std::make_unique<Sequence>(*model_, params_, helpers_));
  sem_init(&over_while_closing_, 0, 0);
}

Runtime::~Runtime() {
  size_t kept = 0;
  for (const auto& outputs : kept_)
    for (const Outputs& o : *outputs) kept += (o.hidden.size() + o.logits.size()) * sizeof(float);
  if (kept)
    log_line("I rksim", "hidden states and logits of " + std::to_string(kept_.size()) +
                            " runs stayed until now: " + std::to_string(kept) + " bytes");
  sem_destroy(&over_while_closing_);
}

void Runtime::check_takes_embeddings(const char* what) const {
  const std::string& rotation = model_->description.rotation;
  if (!rotation.empty())
    throw Error(
        std::string(what) + ": this model is rotated (" + rotation +
        "), and embeddings that were made for the original would mean nothing to it: convert it without --rotate");
}

void Runtime::tell_basis() const {
  const std::string& rotation = model_->description.rotation;
  if (!rotation.empty())
    log_warning("this model is rotated (" + rotation +
                "): its hidden states are in another basis than the original's, without the gains of the last norm");
}

void Runtime::load_lora(const std::string& path, const std::string& name, float scale) {
  const auto refuse_second = [&] {
    if (loras_.count(name)) throw Error("a LoRA called '" + name + "' is loaded already: give it another name");
  };
  {
    Lock lock(mutex_);
    refuse_second();
  }
  auto lora = std::make_unique<Lora>(path, *model_, scale);  // not under the lock: abort must get through
  log_line("I rksim", "LoRA '" + name + "' changes " + std::to_string(lora->layers()) + " layers");
  Lock lock(mutex_);
  refuse_second();
  loras_[name] = std::move(lora);
}

const Lora* Runtime::lora(const std::string& name) {
  Lock lock(mutex_);
  const auto it = loras_.find(name);
  if (it != loras_.end()) return it->second.get();
  std::string known;
  for (const auto& [other, _] : loras_) known += (known.empty() ? "; there are " : ", ") + other;
  throw Error("no LoRA called '" + name + "' is loaded" + known);
}

// Under the lock.
void Runtime::check_idle(const char* what) const {
  if (running_ || closing_) throw Error(std::string("a run is under way: ") + what + " belongs to it");
}

void Runtime::load_prompt_cache(const std::string& path) {
  PromptCache read = read_prompt_cache(path, sequences_[0]->cache_key(nullptr), sequences_[0]->kv_token_bytes());
  Lock lock(mutex_);
  check_idle("the prompt cache");
  cache_ = std::make_unique<PromptCache>(std::move(read));
}

void Runtime::release_prompt_cache() {
  Lock lock(mutex_);
  check_idle("the prompt cache");
  cache_.reset();
}

void Runtime::replace_template(std::string system, std::string prefix, std::string postfix) {
  Lock lock(mutex_);
  check_idle("the chat template");
  chat_.replace(std::move(system), std::move(prefix), std::move(postfix));
}

void Runtime::set_tools(const std::string& system, const std::string& list, std::string tag) {
  Lock lock(mutex_);
  check_idle("the chat template");
  chat_.set_tools(system, list, std::move(tag));
}

// f() with the handle to itself, as a run has it.
template <class F>
void Runtime::as_a_run(F&& f) {
  {
    Lock lock(mutex_);
    check_idle("the KV cache");
    begin();
    runner_ = std::this_thread::get_id();
  }
  try {
    f();
  } catch (...) {
    end();
    throw;
  }
  end();
}

void Runtime::forget(bool but_system) {
  as_a_run([&] {
    for (auto& sequence : sequences_) sequence->forget(but_system);
  });
}

void Runtime::cut(const std::vector<std::pair<int, int>>& ranges) {
  as_a_run([&] {
    for (size_t i = 0; i < sequences_.size(); i++)
      if (ranges[i].first != ranges[i].second) sequences_[i]->cut(ranges[i].first, ranges[i].second);
  });
}

std::vector<int> Runtime::cached() const {
  std::vector<int> found;
  for (const auto& sequence : sequences_) found.push_back(static_cast<int>(sequence->cached()));
  return found;
}

// Under the lock.
bool Runtime::begin() {
  if (running_ || closing_) {
    log_error(closing_ ? "the handle is being destroyed" : "a run is under way: one handle runs one prompt at a time");
    return false;
  }
  running_ = true;
  aborted_ = false;
  return true;
}

void Runtime::end() {
  Lock lock(mutex_);
  running_ = false;
  if (closing_) sem_post(&over_while_closing_);
}

int Runtime::run(const Requests& requests) {
  {
    Lock lock(mutex_);
    if (!begin()) return -1;
    runner_ = std::this_thread::get_id();
  }
  const int result = work(requests, false);
  end();
  return result;
}

int Runtime::run_async(Requests requests) {
  Lock lock(mutex_);  // held until worker_ is set: the run's end takes it, too
  if (!begin()) return -1;
  try {
    if (worker_) worker_->join();  // of the run before, which is over
    worker_.reset();
    worker_ = std::make_shared<std::thread>([this, requests = std::move(requests)] {
      Inside inside;
      work(requests, true);
      end();
    });
  } catch (...) {
    running_ = false;
    throw;
  }
  runner_ = worker_->get_id();
  return 0;
}

int Runtime::abort() {
  Lock lock(mutex_);
  if (!running_) return -1;
  aborted_ = true;
  return 0;
}

bool Runtime::running() {
  Lock lock(mutex_);
  return running_;
}

bool Runtime::close() {
  bool wait = false;
  {
    Lock lock(mutex_);
    if (closing_ || (running_ && runner_ == std::this_thread::get_id())) {
      log_error(closing_ ? "the handle is being destroyed already"
                         : "rkllm_destroy from inside the callback is refused: abort, and destroy after the run");
      return false;
    }
    closing_ = aborted_ = true;
    wait = running_;
  }
  while (wait && sem_wait(&over_while_closing_) != 0 && errno == EINTR) {
  }
  Lock lock(mutex_);  // the run's end has let go of it
  if (worker_) worker_->join();
  worker_.reset();
  return true;
}

bool Runtime::survives_fork() {
  if (worker_) abandon(std::exchange(worker_, nullptr));  // no thread is behind it here
  return !closing_ && (!running_ || runner_ == std::this_thread::get_id());
}

}  // namespace rksim
