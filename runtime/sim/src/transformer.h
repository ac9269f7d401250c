// A transformer over a KV cache, step by step as docs/numerics.md has it: what Session evaluates with.
#pragma once
#include <initializer_list>
#include <vector>

#include "kernels.h"
#include "lora.h"
#include "model.h"

namespace rksim {

constexpr int64_t kTile64 = 64;

// A linear layer and where its outputs go: y[t * stride + row].
struct Job {
  const Linear* linear;
  float* y;
  int64_t stride;
};

// Not thread-safe. Token counts are of the chunk that is evaluated at once.
class Transformer {
 public:
  using Floats = std::vector<float>;

  // Throws Error on an RKSIM_ACT_SCALE that it does not know, where the model does not say itself.
  Transformer(Model& model, int context);

  // What ids become before the first layer, [tokens][hidden]. Throws Error on an id outside the vocabulary.
  void embed(const int32_t* ids, int64_t tokens, float* out) const;
  // The same into `x`, or what somebody else made of something.
  void set_input(const int32_t* ids, int64_t tokens);
  void set_input(const float* embeddings, int64_t tokens);
  // `x` holds the input of `tokens` tokens; afterwards the output of the last layer, and position has moved on.
  void forward(int64_t tokens);
  void layer(int index, int64_t tokens);  // one of them, at the position at hand
  void make_room(int64_t tokens);
  void linear(const float* input, int64_t tokens, std::initializer_list<Job> jobs);
  void norm(const Norm& norm, const float* from, float* to, int64_t n) const;  // one vector of n
  // From hidden states that went through the output norm, [tokens][hidden], to [tokens][n_vocab].
  void logits(const float* normed, int64_t tokens, float* out);
  // Where the ring wraps, a chunk would overwrite keys that its own first tokens still look at.
  int64_t next_chunk(int64_t left, size_t chunk) const;

  uint8_t* cached(int layer, int side, int64_t head) const;  // [context][head_dim] of the keys (0) or values (1)

  Model& model;
  const Kernels& kernels;
  const Shape& shape;
  const Features& features;
  const int64_t context, q_size, kv_size;
  const ActScale act_scale;
  const size_t kv_bytes;  // of one cached value
  int64_t position = 0;
  int64_t kept = 0;  // positions at the beginning that stay when the ring wraps
  const Lora* lora = nullptr;
  Floats x;       // [tokens][hidden]
  Floats normed;  // [tokens][hidden]

 private:
  // Of a ring of `ring` slots from slot `base` on, `length` from `begin`, around its end.
  struct Seen {
    int64_t base, begin, length, ring;
  };

  template <class F>
  void each_token(int64_t tokens, F&& body);
  void quantise(const float* input, int64_t tokens, const Linear& to);
  void adapt(const LoraPair& pair, const float* input, int64_t tokens, const Job& job);
  void turn_tables(int64_t tokens);
  void place(int layer, int64_t t);
  int64_t slot_of(int64_t at) const;
  Seen seen_from(int64_t at, int window) const;
  void store(const float* from, uint8_t* head, int64_t slot);
  void attend(int layer, int64_t tokens);
  void attention(int layer, const float* input, int64_t tokens);
  void mlp(const Layer& layer, const float* input, int64_t tokens);
  void norm_tokens(const Norm& norm, Floats& from, Floats& to, int64_t tokens);
  void add_delta(const Norm& post, int64_t tokens);
  const float* input_of(const Norm& norm, int64_t tokens);

  const std::vector<double>& frequencies_;  // of Rope::kBase in this context, [rope.dims / 2]
  Pages cache_;                             // [layers][2: k, v][kv heads][context][head_dim]
  Floats q_, mixed_;                        // [tokens][heads][head_dim]
  Floats k_, v_;                            // [tokens][kv heads][head_dim]
  Floats gate_, up_;                        // [tokens][intermediate]
  Floats delta_;                            // [tokens][hidden], what attention or MLP adds
  Floats cosine_[2], sine_[2];              // by Rope's table, base and local: [tokens][rope.dims / 2]
  Floats low_rank_, change_;                // of a LoRA: [tokens][rank], [tokens][N]
  Activations activations_;
};

}  // namespace rksim
