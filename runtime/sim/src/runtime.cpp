// The course of a run: prompt, tokens, exactly one FINISH or ERROR.
#include "runtime.h"

#include <algorithm>
#include <cerrno>
#include <climits>
#include <utility>

#include "error.h"
#include "log.h"

namespace rksim {

Runtime::Runtime(std::unique_ptr<Model> model, const RunParams& params, LLMResultCallback callback)
    : model_(std::move(model)), params_(params), callback_(callback), session_(*model_, params.context),
      sampler_(params.sampler, model_->shape.n_vocab) {
  sem_init(&over_while_closing_, 0, 0);
}

Runtime::~Runtime() { sem_destroy(&over_while_closing_); }

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
void Runtime::check_idle() const {
  if (running_ || closing_) throw Error("a run is under way: the prompt cache belongs to it");
}

void Runtime::load_prompt_cache(const std::string& path) {
  PromptCache read = read_prompt_cache(path, cache_key(nullptr), session_.kv_token_bytes());
  Lock lock(mutex_);
  check_idle();
  cache_ = std::make_unique<PromptCache>(std::move(read));
}

void Runtime::release_prompt_cache() {
  Lock lock(mutex_);
  check_idle();
  cache_.reset();
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

int Runtime::run(const Request& request) {
  {
    Lock lock(mutex_);
    if (!begin()) return -1;
    runner_ = std::this_thread::get_id();
  }
  const int result = work(request);
  end();
  return result;
}

int Runtime::run_async(Request request) {
  Lock lock(mutex_);  // held until worker_ is set: the run's end takes it, too
  if (!begin()) return -1;
  try {
    if (worker_) worker_->join();  // of the run before, which is over
    worker_.reset();
    worker_ = std::make_shared<std::thread>([this, request = std::move(request)] {
      Inside inside;
      work(request);
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

// Exactly one FINISH or ERROR, whatever happens.
int Runtime::work(const Request& request) noexcept {
  over_ = false;
  const int result = guarded("error", [&] {
    generate(request);
    return 0;
  });
  if (!over_)
    guarded("error", [&] {
      give({"", -1, {nullptr, 0, 0}}, request, RKLLM_RUN_ERROR);
      return 0;
    });
  return result;
}

void Runtime::generate(const Request& request) {
  session_.reset();
  session_.use(request.lora);
  sampler_.reset();
  held_.clear();
  at_start_ = true;
  figures_.start();
  int32_t id = -1;
  size_t tokens = 0;
  if (request.mode == RKLLM_INFER_GET_LAST_HIDDEN_LAYER)
    give_hidden_states(request);
  else
    tokens = answer(request, id);
  if (params_.figures) figures_.print(tokens);
  const bool ended = id >= 0 && model_->tokenizer.ends_answer(id);
  give({"", ended ? id : -1, {nullptr, 0, 0}}, request, RKLLM_RUN_FINISH);
}

// Returns how many tokens it has; id becomes the last one, also one that ends the answer and is not counted.
size_t Runtime::answer(const Request& request, int32_t& id) {
  const float* logits = prefill(request, nullptr);
  size_t n = 0;
  while ((params_.max_new_tokens < 0 || n < static_cast<size_t>(params_.max_new_tokens)) && !aborted_) {
    if (n > 0 && past_context()) break;
    sleep_ms(params_.faults.token_ms);
    act_at(params_.faults, static_cast<int>(std::min<size_t>(n + 1, INT_MAX)));
    if (n > 0) logits = session_.eval(&id, 1);
    id = sampler_.sample(logits);
    if (id < 0) throw Error("the model gave no finite logit");
    sampler_.accept(id);
    const bool last = model_->tokenizer.ends_answer(id);
    if (!last || !params_.skip_special) give_token(id, request);
    if (last) break;
    n++;
  }
  return n;
}

// A model that never ends its answer would otherwise go on for ever, with what it began with long dropped.
bool Runtime::past_context() const {
  if (!params_.past_context || session_.position() - params_.context < *params_.past_context) return false;
  log_warning("the answer ends here: it is " + std::to_string(*params_.past_context) + " tokens past the context of " +
              std::to_string(params_.context) + " (RKSIM_PAST_CONTEXT)");
  return true;
}

void Runtime::give_hidden_states(const Request& request) {
  std::vector<float> states;
  prefill(request, &states);
  const int tokens = static_cast<int>(states.size() / static_cast<size_t>(shape().hidden));
  give({"", -1, {states.data(), shape().hidden, tokens}}, request, RKLLM_RUN_GET_LAST_HIDDEN_LAYER);
}

void Runtime::give_token(int32_t id, const Request& request) {
  std::string_view piece = model_->tokenizer.piece(id, params_.skip_special);
  if (at_start_ && !piece.empty()) {
    at_start_ = false;
    if (model_->tokenizer.drops_first_space() && piece.front() == ' ') piece.remove_prefix(1);
  }
  held_ += piece;
  const bool waiting = incomplete_utf8(held_) > 0;
  std::string text;
  if (!waiting) text.swap(held_);
  give({text.c_str(), id, {nullptr, 0, 0}}, request, waiting ? RKLLM_RUN_WAITING : RKLLM_RUN_NORMAL);
}

void Runtime::give(RKLLMResult result, const Request& request, LLMCallState state) {
  over_ = state == RKLLM_RUN_FINISH || state == RKLLM_RUN_ERROR;
  if (params_.faults.null_text && (over_ || state == RKLLM_RUN_WAITING)) result.text = nullptr;
  if (!callback_) return;
  Inside outside(false);
  callback_(over_ && params_.faults.finish_null ? nullptr : &result, request.userdata, state);
}

}  // namespace rksim
