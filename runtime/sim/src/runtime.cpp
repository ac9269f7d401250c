// The course of a run: prompt, tokens, exactly one FINISH or ERROR.
#include "runtime.h"

#include <algorithm>
#include <cmath>
#include <utility>

#include "error.h"
#include "log.h"

namespace rksim {

Runtime::Runtime(std::unique_ptr<Model> model, const RunParams& params, LLMResultCallback callback)
    : model_(std::move(model)), params_(params), callback_(callback), session_(*model_, params.context),
      sampler_(params.sampler, model_->shape.n_vocab) {}

void Runtime::load_lora(const std::string& path, const std::string& name, float scale) {
  const auto refuse_second = [&] {
    if (loras_.count(name)) throw Error("a LoRA called '" + name + "' is loaded already: give it another name");
  };
  {
    std::lock_guard lock(mutex_);
    refuse_second();
  }
  auto lora = std::make_unique<Lora>(path, *model_, scale);  // not under the lock: abort must get through
  log_line("I rksim", "LoRA '" + name + "' changes " + std::to_string(lora->layers()) + " layers");
  std::lock_guard lock(mutex_);
  refuse_second();
  loras_[name] = std::move(lora);
}

const Lora* Runtime::lora(const std::string& name) {
  std::lock_guard lock(mutex_);
  const auto it = loras_.find(name);
  if (it != loras_.end()) return it->second.get();
  std::string known;
  for (const auto& [other, _] : loras_) known += (known.empty() ? "; there are " : ", ") + other;
  throw Error("no LoRA called '" + name + "' is loaded" + known);
}

CacheKey Runtime::cache_key(const Lora* lora) const {
  return {model_->file.checksum(), lora ? lora->checksum() : 0, session_.act_scale()};
}

// Under the lock.
void Runtime::check_idle() const {
  if (running_ || closing_) throw Error("a run is under way: the prompt cache belongs to it");
}

void Runtime::load_prompt_cache(const std::string& path) {
  PromptCache read = read_prompt_cache(path, cache_key(nullptr), session_.kv_token_bytes());
  std::lock_guard lock(mutex_);
  check_idle();
  cache_ = std::make_unique<PromptCache>(std::move(read));
}

void Runtime::release_prompt_cache() {
  std::lock_guard lock(mutex_);
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

// The last a run does with this object: close() may be waiting to free it, so it is told under the lock.
void Runtime::end() {
  std::lock_guard lock(mutex_);
  running_ = false;
  idle_.notify_all();
}

int Runtime::run(const Request& request) {
  {
    std::lock_guard lock(mutex_);
    if (!begin()) return -1;
    runner_ = std::this_thread::get_id();
  }
  const int result = work(request);
  end();
  return result;
}

int Runtime::run_async(Request request) {
  std::lock_guard lock(mutex_);  // held until worker_ is set: the run's end takes it, too
  if (!begin()) return -1;
  try {
    if (worker_.joinable()) worker_.join();  // of the run before, which is over
    worker_ = std::thread([this, request = std::move(request)] {
      work(request);
      end();
    });
  } catch (...) {
    running_ = false;
    throw;
  }
  runner_ = worker_.get_id();
  return 0;
}

int Runtime::abort() {
  std::lock_guard lock(mutex_);
  if (!running_) return -1;
  aborted_ = true;
  return 0;
}

bool Runtime::running() {
  std::lock_guard lock(mutex_);
  return running_;
}

bool Runtime::close() {
  std::unique_lock lock(mutex_);
  if (closing_ || (running_ && runner_ == std::this_thread::get_id())) {
    log_error(closing_ ? "the handle is being destroyed already"
                       : "rkllm_destroy from inside the callback is refused: abort, and destroy after the run");
    return false;
  }
  closing_ = true;
  aborted_ = true;
  idle_.wait(lock, [&] { return !running_; });
  std::thread last = std::move(worker_);
  lock.unlock();
  if (last.joinable()) last.join();
  return true;
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
  int32_t id = -1;
  if (request.mode == RKLLM_INFER_GET_LAST_HIDDEN_LAYER) {
    give_hidden_states(request);
  } else {
    const float* logits = prefill(request, nullptr);
    for (int n = 0; (params_.max_new_tokens < 0 || n < params_.max_new_tokens) && !aborted_; n++) {
      sleep_ms(params_.faults.token_ms);
      act_at(params_.faults, n + 1);
      if (n > 0) logits = session_.eval(&id, 1);
      id = sampler_.sample(logits);
      if (id < 0) throw Error("the model gave no finite logit");
      sampler_.accept(id);
      const bool last = model_->tokenizer.ends_answer(id);
      if (!last || !params_.skip_special) give_token(id, request);
      if (last) break;
    }
  }
  const bool ended = id >= 0 && model_->tokenizer.ends_answer(id);
  give({"", ended ? id : -1, {nullptr, 0, 0}}, request, RKLLM_RUN_FINISH);
}

std::vector<int32_t> Runtime::prompt_ids(const Request& request) const {
  if (request.type == RKLLM_INPUT_TOKEN) return request.ids;
  const Tokenizer& t = model_->tokenizer;
  std::vector<int32_t> ids = t.encode(request.prompt, false, true);
  if (t.add_bos() && t.bos_id() >= 0 && (ids.empty() || ids.front() != t.bos_id())) ids.insert(ids.begin(), t.bos_id());
  return ids;
}

void Runtime::check_room(size_t tokens) const {
  if (tokens == 0) throw Error("the prompt has no tokens");
  const auto most = static_cast<size_t>(params_.context - kAnswerReserve);
  if (tokens > most)
    throw Error("prompt gather than max context (" + std::to_string(tokens) + " tokens > " + std::to_string(most) +
                ")");
}

// The logits after the prompt; all_hidden (nullptr: not wanted) gets the hidden state of each of its tokens.
const float* Runtime::prefill(const Request& request, std::vector<float>* all_hidden) {
  const auto size = static_cast<size_t>(shape().hidden);
  sleep_ms(params_.faults.prefill_ms);
  act_at(params_.faults, 0);
  if (request.type == RKLLM_INPUT_MULTIMODAL) throw Error("multimodal input is not simulated");
  if (request.type == RKLLM_INPUT_EMBED) {
    check_room(request.tokens);
    for (float x : request.embeddings)
      if (!std::isfinite(x)) throw Error("the input embeddings hold a value that is not finite");
    if (all_hidden) all_hidden->resize(request.tokens * size);
    return session_.eval_embeddings(request.embeddings.data(), request.tokens,
                                    all_hidden ? all_hidden->data() : nullptr);
  }
  const std::vector<int32_t> ids = prompt_ids(request);
  check_room(request.type == RKLLM_INPUT_TOKEN ? request.tokens : ids.size());
  if (all_hidden) all_hidden->resize(ids.size() * size);
  const size_t known = cache_ && !all_hidden ? reuse_cache(ids, request.lora) : 0;
  const float* logits =
      session_.eval(ids.data() + known, ids.size() - known, all_hidden ? all_hidden->data() : nullptr);
  if (!request.save_cache.empty()) {
    PromptCache saved{cache_key(request.lora), ids, session_.save_kv(static_cast<int64_t>(ids.size()))};
    write_prompt_cache(request.save_cache, saved);
  }
  for (int32_t id : ids) sampler_.accept(id);
  return logits;
}

// Starts the session with what the cache knows of this prompt: its beginning, but for the last token, whose logits are
// asked for.
size_t Runtime::reuse_cache(const std::vector<int32_t>& ids, const Lora* lora) {
  if (cache_->key.lora != cache_key(lora).lora) {
    log_line("I rksim", "the prompt cache is not used: it was saved with another LoRA");
    return 0;
  }
  const size_t most = std::min(ids.size() - 1, cache_->ids.size());
  const auto differs = std::mismatch(ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(most), cache_->ids.begin());
  const int64_t known = session_.reusable(differs.first - ids.begin());
  session_.load_kv(cache_->kv, static_cast<int64_t>(cache_->ids.size()), known);
  log_line("I rksim", "prompt cache: " + std::to_string(known) + " of " + std::to_string(ids.size()) + " tokens");
  return static_cast<size_t>(known);
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
  callback_(over_ && params_.faults.finish_null ? nullptr : &result, request.userdata, state);
}

}  // namespace rksim
