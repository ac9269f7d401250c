// The course of a run: prompts, tokens, exactly one FINISH or ERROR.
#include <algorithm>
#include <climits>
#include <utility>

#include "error.h"
#include "log.h"
#include "runtime.h"

namespace rksim {

// Exactly one FINISH or ERROR, whatever happens; none where a release refuses a prompt by what its call returns.
int Runtime::work(const Requests& requests, bool asynchronous) noexcept {
  over_ = false;
  const int result = guarded("error", [&] {
    try {
      generate(requests);
    } catch (const TooLong&) {
      over_ = params_.ways.quiet_refusal && !asynchronous;
      throw;
    }
    return 0;
  });
  if (result != 0)
    for (auto& sequence : sequences_) sequence->recover();
  if (!over_)
    guarded("error", [&] {
      give(std::vector<Event>(sequences_.size()), requests, State::kError);
      return 0;
    });
  return result;
}

void Runtime::generate(const Requests& requests) {
  tokens_ = 0;
  paused_ = false;
  figures_.start();
  if (requests[0].mode == Mode::kGenerate)
    answer(requests);
  else
    give_outputs(requests);
  figures_.end(tokens_);
  if (params_.figures) figures_.print();
  finish(requests);
}

// Every prompt through the model. `outputs`: one of each, or nullptr.
void Runtime::prefill(const Requests& requests, std::vector<Outputs>* outputs) {
  sleep_ms(params_.faults.prefill_ms);
  act_at(params_.faults, 0);
  size_t tokens = 0;
  for (size_t i = 0; i < requests.size(); i++) {
    sequences_[i]->begin(requests[i], chat_, cache_.get(), outputs ? &(*outputs)[i] : nullptr);
    tokens += sequences_[i]->prompt_tokens();
  }
  figures_.prefilled(tokens);
}

bool Runtime::any_live() const {
  return std::any_of(sequences_.begin(), sequences_.end(), [](const auto& sequence) { return sequence->live(); });
}

void Runtime::answer(const Requests& requests) {
  prefill(requests, nullptr);
  const int most = requests[0].max_new_tokens.value_or(params_.max_new_tokens);
  for (size_t n = 0; (most < 0 || n < static_cast<size_t>(most)) && !aborted_; n++) {
    if (n > 0)
      for (auto& sequence : sequences_) sequence->end_past_context();
    if (!any_live()) break;
    sleep_ms(params_.faults.token_ms);
    act_at(params_.faults, static_cast<int>(std::min<size_t>(n + 1, INT_MAX)));
    if (!step(requests)) break;
  }
}

// A token of each answer that goes on. False: none does, or the callback wants a pause.
bool Runtime::step(const Requests& requests) {
  std::vector<Token> tokens(sequences_.size());
  std::vector<Event> events(sequences_.size());
  const bool alone = sequences_.size() == 1;
  bool told = false, all_waiting = true;
  for (size_t i = 0; i < sequences_.size(); i++) {
    Sequence& sequence = *sequences_[i];
    events[i].text = nullptr;  // of one that is done, or waits for the rest of a character
    if (!sequence.live()) continue;
    Token& token = tokens[i] = sequence.step();
    tokens_ += sequence.live() ? 1 : 0;
    if (!token.told || (!alone && !sequence.live())) continue;
    told = true;
    all_waiting = all_waiting && token.waiting;
    events[i].id = token.id;
    if (alone || !token.waiting) events[i].text = token.text.c_str();
  }
  const State state = alone && all_waiting ? State::kWaiting : State::kToken;
  if (told && give(std::move(events), requests, state) == Reply::kPause && params_.ways.pauses) paused_ = true;
  return !paused_ && any_live();
}

void Runtime::give_outputs(const Requests& requests) {
  auto outputs = std::make_unique<std::vector<Outputs>>(sequences_.size());
  prefill(requests, outputs.get());
  const bool logits = requests[0].mode == Mode::kLogits;
  const int hidden = shape().hidden, vocabulary = shape().n_vocab;
  std::vector<Event> events(sequences_.size());
  for (size_t i = 0; i < events.size(); i++) {
    const Outputs& o = (*outputs)[i];
    if (logits)
      events[i].logits = {o.logits.data(), vocabulary,
                          static_cast<int>(o.logits.size() / static_cast<size_t>(vocabulary))};
    else
      events[i].hidden = {o.hidden.data(), hidden, static_cast<int>(o.hidden.size() / static_cast<size_t>(hidden))};
  }
  const Reply reply = give(std::move(events), requests, logits ? State::kLogits : State::kHidden);
  if (params_.ways.keeps_outputs && reply != Reply::kFree) kept_.push_back(std::move(outputs));
}

void Runtime::finish(const Requests& requests) {
  for (auto& sequence : sequences_) sequence->finish(requests[0].keep_history, paused_);
  if (paused_ && !params_.ways.finishes_paused) {
    over_ = true;
    return;
  }
  std::vector<Event> events(sequences_.size());
  for (Event& event : events) event.perf = figures_.perf(sequences_.size());
  if (events.size() == 1) events[0].id = sequences_[0]->end_token();
  give(std::move(events), requests, State::kFinish);
}

Reply Runtime::give(std::vector<Event> events, const Requests& requests, State state) {
  over_ = state == State::kFinish || state == State::kError;
  if (params_.faults.null_text && (over_ || state == State::kWaiting))
    for (Event& event : events) event.text = nullptr;
  if (!listener_) return Reply::kGoOn;
  Inside outside(false);
  return listener_(over_ && params_.faults.finish_null ? nullptr : &events, requests[0].userdata, state);
}

}  // namespace rksim
