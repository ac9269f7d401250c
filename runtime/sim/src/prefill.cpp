// The beginning of a run: its prompt, of whatever kind, through the model.
#include <algorithm>
#include <cmath>
#include <string_view>

#include "error.h"
#include "log.h"
#include "lora.h"
#include "process.h"
#include "sequence.h"

namespace rksim {
namespace {

constexpr uint64_t kMostLogits = 1u << 28;  // of one prompt: 1 GB

void check_finite(const std::vector<float>& values, const std::string& what) {
  for (float x : values)
    if (!std::isfinite(x)) throw Error("the " + what + " embeddings hold a value that is not finite");
}

// A prompt in pieces: each text, and which medium stands behind it; -1 behind the last.
struct Piece {
  std::string_view text;
  int medium;
};

std::vector<Piece> split(std::string_view text, const std::vector<Media>& media) {
  std::vector<Piece> pieces;
  for (;;) {
    size_t at = text.npos;
    int found = -1;
    for (size_t i = 0; i < media.size(); i++) {
      const size_t here = text.find(media[i].mark);
      if (here < at) at = here, found = static_cast<int>(i);
    }
    pieces.push_back({text.substr(0, at), found});
    if (found < 0) return pieces;
    text.remove_prefix(at + media[static_cast<size_t>(found)].mark.size());
  }
}

void check_ids(const std::vector<int32_t>& ids, int vocabulary, const std::string& before) {
  for (int32_t id : ids)
    if (id < 0 || id >= vocabulary)
      throw Error(before + "token id " + std::to_string(id) + " is outside the vocabulary of " +
                  std::to_string(vocabulary));
}

// How many embeddings each mark of this medium gets.
size_t share(const Media& m, size_t marks) {
  if (marks == 0)
    throw Error("the prompt of a multimodal input has no " + m.mark + ": write it where the " + m.what + " belongs");
  if (m.size == 0) throw Error(m.size_name + " is 0: a multimodal input needs an " + m.what + "'s embeddings");
  if (m.count && *m.count != marks)
    throw Error("the prompt has " + std::to_string(marks) + " " + m.mark + ", and the input " +
                std::to_string(*m.count) + ": each has to have its own");
  if (m.count) return m.size;
  if (m.size % marks)
    throw Error(m.size_name + " is " + std::to_string(m.size) + ", which the prompt's " + std::to_string(marks) + " " +
                m.mark + " cannot share evenly: every " + m.what + " must have as many as the others");
  return m.size / marks;
}

}  // namespace

CacheKey Sequence::cache_key(const Lora* lora) const {
  return {model_.file.checksum(), lora ? lora->checksum() : 0, session_.arithmetic()};
}

void Sequence::check_room(size_t tokens) const {
  if (tokens == 0) throw Error("the prompt has no tokens");
  const auto most = static_cast<size_t>(params_.context - kAnswerReserve);
  if (tokens > most)
    throw TooLong("prompt gather than max context (" + std::to_string(tokens) + " tokens > " + std::to_string(most) +
                  ")");
}

std::vector<int32_t> Sequence::encode(const std::string& text, bool first) const {
  if (!helpers_.tokenize) return model_.tokenizer.encode(text, false, true, first);
  Inside outside(false);
  auto ids = helpers_.tokenize(text, static_cast<size_t>(params_.context));
  check_ids(ids, shape().n_vocab, "of tokenizer_callback: ");  // below 0 it would pass for an embedding
  return ids;
}

// With BOS in front where the model wants it, nothing stands before, and it is not there.
std::vector<int32_t> Sequence::text_ids(const std::string& text) const {
  const Tokenizer& t = model_.tokenizer;
  std::vector<int32_t> ids = encode(text, !goes_on_);
  if (!helpers_.tokenize && !goes_on_ && t.add_bos() && t.bos_id() >= 0 && (ids.empty() || ids.front() != t.bos_id()))
    ids.insert(ids.begin(), t.bos_id());
  return ids;
}

std::string Sequence::turn(const Request& request, const Chat& chat) const {
  Turn turn{request.prompt, request.of_tool, request.thinking};
  if (goes_on_) turn.place = ids_.size() == system_tokens_ ? Turn::kAfterSystem : Turn::kLater;
  if (paused_) turn.place = Turn::kInside;
  return chat.render(turn);
}

// Ids, with kEmbedding less the medium's number for each of its embeddings.
std::vector<int32_t> Sequence::media_ids(const Request& request, const std::string& prompt) const {
  const auto pieces = split(prompt, request.media);
  std::vector<size_t> marks(request.media.size()), each;
  size_t embeddings = 0;
  for (const Piece& piece : pieces)
    if (piece.medium >= 0) marks[static_cast<size_t>(piece.medium)]++;
  for (size_t i = 0; i < marks.size(); i++) {
    each.push_back(share(request.media[i], marks[i]));
    size_t all;
    if (__builtin_mul_overflow(each[i], marks[i], &all) || __builtin_add_overflow(embeddings, all, &embeddings))
      throw TooLong(request.media[i].size_name + " is " + std::to_string(each[i]) + ": no context holds as many");
  }
  check_room(embeddings);
  for (const Media& m : request.media)
    if (model_.tokenizer.encode(m.frame.content, false, true).size() != 1)
      log_warning(m.content_name + " '" + m.frame.content +
                  "' is no token of this model: on a board, embeddings replace such tokens");
  std::vector<int32_t> ids;
  std::string before;  // the end of the frame around the medium before
  for (size_t i = 0; i < pieces.size(); i++) {
    const Media* next = pieces[i].medium < 0 ? nullptr : &request.media[static_cast<size_t>(pieces[i].medium)];
    const std::string text = before + std::string(pieces[i].text) + (next ? next->frame.start : "");
    const auto found = i == 0 ? text_ids(text) : encode(text, false);
    ids.insert(ids.end(), found.begin(), found.end());
    if (!next) break;
    ids.insert(ids.end(), each[static_cast<size_t>(pieces[i].medium)], kEmbedding - pieces[i].medium);
    before = next->frame.end;
  }
  return ids;
}

// Leaves the logits after the prompt.
void Sequence::prefill(const Request& request, const Chat& chat, const PromptCache* cache, Outputs* outputs) {
  std::vector<int32_t> ids = request.ids;
  size_t tokens = request.tokens;
  if (request.type == InputType::kPrompt || request.type == InputType::kMultimodal) {
    const std::string text = turn(request, chat);
    ids = request.type == InputType::kPrompt ? text_ids(text) : media_ids(request, text);
    if (goes_on_ && !paused_ && ended_by_ >= 0 && chat.wants_end_token()) ids.insert(ids.begin(), ended_by_);
    tokens = ids.size();
  }
  check_room(tokens);
  if (request.type == InputType::kToken) {
    broken_ = true;  // an id that is none ends the conversation, wherever it stands
    check_ids(ids, shape().n_vocab, "");
  }
  if (request.mode == Mode::kLogits && !params_.ways.last_logits &&
      tokens > kMostLogits / static_cast<size_t>(shape().n_vocab))
    throw Error("the logits of " + std::to_string(tokens) + " tokens take more than 1 GB: give a shorter prompt, or " +
                "ask for the last token's (RKSIM_LOGITS=last)");
  prompt_tokens_ = tokens;
  if (!goes_on_) {
    system_tokens_ = 0;
    if (request.type == InputType::kPrompt) note_system(chat, ids);
    set_keep(tokens);
  } else if (lora_ != request.lora) {
    mixed_ = true;
  }
  switch (request.type) {
    case InputType::kPrompt:
    case InputType::kToken: prefill_tokens(request, ids, cache, outputs); break;
    case InputType::kEmbed:
      check_finite(request.embeddings, "input");
      prefill_embeddings(request.embeddings, std::vector<int32_t>(tokens, kEmbedding), outputs);
      break;
    case InputType::kMultimodal: prefill_media(request, ids, outputs); break;
  }
  lora_ = request.lora;
  if (!goes_on_) at_once_ = ids_.size();
  if (request.mode == Mode::kLogits) give_logits(*outputs);
}

// How many of a prompt's tokens are its system prompt: those that it begins with, too.
void Sequence::note_system(const Chat& chat, const std::vector<int32_t>& ids) {
  const std::string text = chat.beginning();
  if (text.empty()) return;
  const std::vector<int32_t> system = text_ids(text);
  const auto n = static_cast<std::ptrdiff_t>(std::min(ids.size(), system.size()));
  system_tokens_ = static_cast<size_t>(std::mismatch(ids.begin(), ids.begin() + n, system.begin()).first - ids.begin());
}

// Of a window that is full, an answer needs some positions that move.
void Sequence::set_keep(size_t prompt_tokens) {
  const int64_t all = params_.ways.keeps_prompt ? static_cast<int64_t>(prompt_tokens) : 0;
  keep_ = std::min<int64_t>(params_.keep < 0 ? all : params_.keep, params_.context - kAnswerReserve);
  session_.keep(keep_);
}

void Sequence::prefill_tokens(const Request& request, const std::vector<int32_t>& ids, const PromptCache* cache,
                              Outputs* outputs) {
  size_t known = 0;
  if (!goes_on_) {
    if (outputs)
      forget(false);  // every token's are wanted
    else
      known = reuse(ids, cache, request.lora);
  }
  logits_ = eval(ids.data() + known, ids.size() - known, outputs);
  if (!request.save_cache.empty()) save_cache(request);
  for (int32_t id : ids) sampler_.accept(id);
}

void Sequence::save_cache(const Request& request) const {
  if (mixed_) throw Error("the conversation so far cannot be saved: its runs had different LoRAs");
  if (shifted() || std::any_of(ids_.begin(), ids_.end(), [](int32_t id) { return id < 0; }))
    throw Error("the conversation so far cannot be saved: it has embeddings, or has outgrown the context");
  std::vector<int32_t> ids = ids_;
  if (goes_on_ && by_tiles()) ids.resize(std::min(ids.size(), at_once_));
  PromptCache saved{cache_key(request.lora), ids, session_.save_kv(static_cast<int64_t>(ids.size()))};
  write_prompt_cache(request.save_cache, saved);
}

void Sequence::prefill_embeddings(const std::vector<float>& x, const std::vector<int32_t>& ids, Outputs* outputs) {
  if (!goes_on_) forget(false);
  broken_ = true;
  logits_ = session_.eval_embeddings(x.data(), ids.size(), room_for(outputs, ids.size()));
  noted(ids.data(), ids.size());
}

void Sequence::prefill_media(const Request& request, const std::vector<int32_t>& ids, Outputs* outputs) {
  std::vector<const float*> next;
  for (const Media& m : request.media) {
    check_finite(m.embeddings, m.what);
    next.push_back(m.embeddings.data());
  }
  const auto hidden = static_cast<size_t>(shape().hidden);
  std::vector<float> x(ids.size() * hidden);  // [ids][hidden]
  for (size_t i = 0; i < ids.size(); i++) {
    if (ids[i] < 0) {
      const float*& from = next[static_cast<size_t>(kEmbedding - ids[i])];
      std::copy_n(from, hidden, &x[i * hidden]);
      from += hidden;
    } else {
      embed(&ids[i], 1, &x[i * hidden]);
      sampler_.accept(ids[i]);
    }
  }
  prefill_embeddings(x, ids, outputs);
}

void Sequence::embed(const int32_t* ids, size_t n, float* out) const {
  if (!helpers_.embed) return session_.embed(ids, n, out);
  Inside outside(false);
  helpers_.embed(ids, n, static_cast<size_t>(shape().hidden), out);
}

// Starts the cache with what is known of this prompt: its beginning, but for the last token, whose logits are asked
// for. Either what a file knows of it, or what the run before has in common with it.
size_t Sequence::reuse(const std::vector<int32_t>& ids, const PromptCache* cache, const Lora* lora) {
  const auto in_common = [&](const std::vector<int32_t>& known) {
    const size_t most = std::min(ids.size() - 1, known.size());
    const auto end = ids.begin() + static_cast<std::ptrdiff_t>(most);
    return static_cast<size_t>(session_.reusable(std::mismatch(ids.begin(), end, known.begin()).first - ids.begin()));
  };
  size_t before = lora == lora_ && !mixed_ && !shifted() ? in_common(ids_) : 0;
  if (by_tiles()) before = std::min(before, static_cast<size_t>(session_.reusable(static_cast<int64_t>(at_once_))));
  if (cache && cache->key.lora != cache_key(lora).lora) {
    log_line("I rksim", "the prompt cache is not used: it was saved with another LoRA");
    cache = nullptr;
  }
  const size_t loaded = cache ? in_common(cache->ids) : 0;
  const size_t known = std::max(before, loaded);
  mixed_ = false;
  if (cache && loaded >= before)
    session_.load_kv(cache->kv, static_cast<int64_t>(cache->ids.size()), static_cast<int64_t>(known));
  else
    session_.rewind(static_cast<int64_t>(known));
  ids_.assign(ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(known));
  if (cache)
    log_line("I rksim", "prompt cache: " + std::to_string(known) + " of " + std::to_string(ids.size()) + " tokens");
  else if (known)
    log_line("I rksim", std::to_string(known) + " of " + std::to_string(ids.size()) + " tokens were there already");
  return known;
}

float* Sequence::room_for(Outputs* outputs, size_t n) const {
  if (!outputs) return nullptr;
  outputs->hidden.resize(n * static_cast<size_t>(shape().hidden));
  return outputs->hidden.data();
}

void Sequence::give_logits(Outputs& outputs) {
  const auto vocabulary = static_cast<size_t>(shape().n_vocab), hidden = static_cast<size_t>(shape().hidden);
  if (params_.ways.last_logits) return outputs.logits.assign(logits_, logits_ + vocabulary);
  const size_t n = outputs.hidden.size() / hidden;
  outputs.logits.resize(n * vocabulary);
  for (size_t at = 0; at < n; at += Session::kDefaultChunk)
    session_.logits_of(&outputs.hidden[at * hidden], std::min(Session::kDefaultChunk, n - at),
                       &outputs.logits[at * vocabulary]);
}

}  // namespace rksim
