// One conversation of a handle: what its KV cache holds, and how a prompt and an answer go through it.
#pragma once
#include <atomic>
#include <string>
#include <vector>

#include "chat.h"
#include "error.h"
#include "event.h"
#include "model.h"
#include "params.h"
#include "prompt_cache.h"
#include "request.h"
#include "sampler.h"

namespace rksim {

// A prompt that is too long for the context: some releases say so otherwise than of other errors.
struct TooLong : Error {
  using Error::Error;
};

// Of the tokens of a prompt, [tokens][hidden] and [tokens][vocabulary].
struct Outputs {
  std::vector<float> hidden, logits;
};

constexpr int32_t kEmbedding = -1;  // in the place of an id, as all below it: an embedding stands here

// What one step of an answer gave.
struct Token {
  int32_t id = -1;
  std::string text;
  bool waiting = false;  // the text ends inside a character: it comes later
  bool told = true;      // false: the token that ended the answer, of which nobody is told
};

// Not thread-safe: it belongs to the run at hand.
class Sequence {
 public:
  // All must outlive it.
  Sequence(Model& model, const RunParams& params, const Helpers& helpers);

  // The prompt, after what is kept of the runs before. `outputs`: where request.mode asks for them, else nullptr.
  // Throws Error, TooLong.
  void begin(const Request& request, const Chat& chat, const PromptCache* cache, Outputs* outputs);
  // The answer's next token; the first comes straight from the prompt.
  Token step();
  bool live() const { return live_; }  // the answer goes on
  // Ends an answer that never ends by itself, and says so.
  void end_past_context();
  int32_t end_token() const { return ended_by_; }  // that ended the answer; -1: none did
  // What the next run finds: everything where it goes on, or what prompts may have in common.
  void finish(bool keep_history, bool paused);

  void recover();  // after an error: the next run begins afresh where this one had computed anything

  size_t prompt_tokens() const { return prompt_tokens_; }
  int64_t cached() const { return cached_; }  // tokens in the cache; of any thread
  void forget(bool but_system);
  // Takes the positions from `begin` to before `end` out of a paused run. Throws Error.
  void cut(int64_t begin, int64_t end);
  CacheKey cache_key(const Lora* lora) const;
  size_t kv_token_bytes() const { return session_.kv_token_bytes(); }

 private:
  std::vector<int32_t> encode(const std::string& text, bool first) const;
  std::vector<int32_t> text_ids(const std::string& text) const;
  std::vector<int32_t> media_ids(const Request& request, const std::string& prompt) const;
  std::string turn(const Request& request, const Chat& chat) const;
  void check_room(size_t tokens) const;
  void prefill(const Request& request, const Chat& chat, const PromptCache* cache, Outputs* outputs);
  void prefill_tokens(const Request& request, const std::vector<int32_t>& ids, const PromptCache* cache,
                      Outputs* outputs);
  // x: [ids][hidden]; ids say what each is.
  void prefill_embeddings(const std::vector<float>& x, const std::vector<int32_t>& ids, Outputs* outputs);
  void save_cache(const Request& request) const;
  void embed(const int32_t* ids, size_t n, float* out) const;
  float* room_for(Outputs* outputs, size_t n) const;  // of n tokens' hidden states; nullptr: they are not wanted
  void give_logits(Outputs& outputs);
  void prefill_media(const Request& request, const std::vector<int32_t>& ids, Outputs* outputs);
  size_t reuse(const std::vector<int32_t>& ids, const PromptCache* cache, const Lora* lora);
  void set_keep(size_t prompt_tokens);
  void note_system(const Chat& chat, const std::vector<int32_t>& ids);
  const float* eval(const int32_t* ids, size_t n, Outputs* outputs);
  void noted(const int32_t* ids, size_t n);
  void count();
  bool shifted() const;  // the context was full, and its oldest positions were dropped
  bool by_tiles() const { return session_.reusable(1) == 0; }  // tokens computed together share an activation scale
  const Shape& shape() const { return model_.shape; }

  Model& model_;
  const RunParams& params_;
  const Helpers& helpers_;
  Session session_;
  Sampler sampler_;

  // Of the run at hand.
  const float* logits_ = nullptr;
  int32_t id_ = -1, ended_by_ = -1;
  bool live_ = false, first_ = true;
  size_t prompt_tokens_ = 0;
  std::string held_;      // text that ends inside a character, until the token that completes it
  bool at_start_ = true;  // nothing of the answer was given yet

  // Of the runs before.
  std::vector<int32_t> ids_;    // what the cache holds, by position; of embeddings -1
  const Lora* lora_ = nullptr;  // it was computed with
  bool mixed_ = false;          // no: its runs had different ones
  size_t at_once_ = 0;          // of its tokens were computed together, as a prompt of theirs is
  size_t system_tokens_ = 0;    // at its beginning
  bool goes_on_ = false;        // the next run does so after all that
  bool paused_ = false, broken_ = false;
  int64_t keep_ = 0;  // positions that stay when the window is shifted
  std::atomic<int64_t> cached_{0};
};

}  // namespace rksim
