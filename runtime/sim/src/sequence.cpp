// The answer's side of a sequence, and what stays of it between runs. prefill.cpp has the prompt's.
#include "sequence.h"

#include <algorithm>
#include <string_view>

#include "error.h"
#include "log.h"

namespace rksim {

Sequence::Sequence(Model& model, const RunParams& params, const Helpers& helpers)
    : model_(model), params_(params), helpers_(helpers), session_(model, params.context),
      sampler_(params.sampler, model.shape.n_vocab) {}

void Sequence::begin(const Request& request, const Chat& chat, const PromptCache* cache, Outputs* outputs) {
  goes_on_ = goes_on_ && (request.keep_history || paused_);
  if (!params_.ways.history || broken_) forget(false);
  session_.use(request.lora);
  sampler_.use(request.sampling.value_or(params_.sampler));
  if (!goes_on_) sampler_.reset();
  held_.clear();
  first_ = live_ = true;
  at_start_ = !paused_;
  id_ = -1;
  prefill(request, chat, cache, outputs);
  ended_by_ = -1;
}

// From here to the run's end: an error leaves half of something.
const float* Sequence::eval(const int32_t* ids, size_t n, Outputs* outputs) {
  broken_ = true;
  float* all = room_for(outputs, n);
  const float* logits;
  if (helpers_.embed) {
    std::vector<float> x(n * static_cast<size_t>(shape().hidden));
    embed(ids, n, x.data());
    logits = session_.eval_embeddings(x.data(), n, all);
  } else {
    logits = session_.eval(ids, n, all);
  }
  noted(ids, n);
  return logits;
}

void Sequence::noted(const int32_t* ids, size_t n) {
  ids_.insert(ids_.end(), ids, ids + n);
  count();
}

void Sequence::count() { cached_ = std::min<int64_t>(session_.position(), params_.context); }

Token Sequence::step() {
  if (!first_) logits_ = eval(&id_, 1, nullptr);
  first_ = false;
  id_ = sampler_.sample(logits_);
  if (id_ < 0) throw Error("the model gave no finite logit");
  sampler_.accept(id_);
  Token token;
  token.id = id_;
  if (model_.tokenizer.ends_answer(id_) && !params_.ignore_end) {
    live_ = false;
    ended_by_ = id_;
    token.told = !params_.skip_special || params_.ways.tells_end;
    if (!token.told) return token;
  }
  std::string_view piece = model_.tokenizer.piece(id_, params_.skip_special);
  if (at_start_ && !piece.empty()) {
    at_start_ = false;
    if (model_.tokenizer.drops_first_space() && piece.front() == ' ') piece.remove_prefix(1);
  }
  held_ += piece;
  token.waiting = incomplete_utf8(held_) > 0;
  if (!token.waiting) token.text.swap(held_);
  return token;
}

// A model that never ends its answer would otherwise go on for ever, with what it began with long dropped.
void Sequence::end_past_context() {
  if (!live_ || !params_.past_context || session_.position() - params_.context < *params_.past_context) return;
  log_warning("the answer ends here: it is " + std::to_string(*params_.past_context) + " tokens past the context of " +
              std::to_string(params_.context) + " (RKSIM_PAST_CONTEXT)");
  live_ = false;
}

void Sequence::finish(bool keep_history, bool paused) {
  paused_ = paused;
  goes_on_ = keep_history || paused;
  // The last token of an answer that was cut off was given, but is not in the cache yet.
  if (goes_on_ && live_ && id_ >= 0) eval(&id_, 1, nullptr);
  broken_ = false;
}

void Sequence::recover() {
  if (broken_) forget(false);
}

bool Sequence::shifted() const { return session_.position() > params_.context; }

void Sequence::forget(bool but_system) {
  auto left = static_cast<int64_t>(but_system ? std::min(system_tokens_, ids_.size()) : 0);
  if (shifted() && left > keep_) {
    log_warning("the system prompt is forgotten, too: the context was full, and its beginning was dropped");
    left = 0;
  }
  session_.rewind(left);
  ids_.resize(static_cast<size_t>(left));
  at_once_ = std::min(at_once_, ids_.size());
  mixed_ = mixed_ && left > 0;
  count();
  goes_on_ = left > 0;
  paused_ = broken_ = false;
  ended_by_ = -1;
}

void Sequence::cut(int64_t begin, int64_t end) {
  if (!paused_) throw Error("a range can be cleared only while a run is paused, by what its callback returned");
  if (begin < 0 || end <= begin || end > cached())
    throw Error("there is no range from " + std::to_string(begin) + " to " + std::to_string(end) + ": " +
                std::to_string(cached()) + " tokens are there");
  const std::vector<int32_t> rest(ids_.begin() + begin, ids_.end());
  if (shifted() || std::any_of(rest.begin(), rest.end(), [](int32_t id) { return id < 0; }))
    throw Error(
        "a range cannot be cleared in front of embeddings, or once the context was full: what stands behind "
        "it is computed again, from its tokens");
  session_.rewind(begin);
  ids_.resize(static_cast<size_t>(begin));
  at_once_ = std::min(at_once_, ids_.size());
  count();
  const auto tail = rest.begin() + (end - begin);
  if (tail != rest.end()) eval(&*tail, static_cast<size_t>(rest.end() - tail), nullptr);
  broken_ = false;
}

}  // namespace rksim
