// Weights and shape of one model.sim.gguf, checked and mapped; and a Session that runs it with a KV cache.
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "description.h"
#include "gguf.h"
#include "kernels.h"
#include "threads.h"
#include "tokenizer.h"

namespace rksim {

// What shares an activation scale: not published for the real NPU, so a setting (RKSIM_ACT_SCALE).
enum class ActScale { kToken, kTile64, kGroup };

// Of a layer without this norm there is no gain.
struct Norm {
  const float *gain = nullptr, *bias = nullptr;
};

struct Layer {
  Norm attn_norm;       // [hidden], as all but the next two
  Norm q_norm, k_norm;  // [head_dim], of each head before RoPE
  Norm attn_post_norm;  // of what attention adds
  Norm ffn_norm;        // none where attention and MLP read the same norm
  Norm ffn_post_norm;   // of what the MLP adds
  Linear q, k, v, output;
  Linear gate, up, down;  // an MLP that is not gated has no gate (n is 0)
};

// Zeroed pages straight from the kernel: memory is taken as it is touched, in huge pages where `huge`.
class Pages {
 public:
  Pages() = default;
  Pages(size_t bytes, bool huge);  // Throws std::bad_alloc.
  ~Pages();
  Pages(Pages&& other) noexcept;
  Pages& operator=(Pages&& other) noexcept;
  uint8_t* data() const { return data_; }

 private:
  uint8_t *map_ = nullptr, *data_ = nullptr;
  size_t size_ = 0;
};

class Model {
 public:
  Model(const std::string& path, int threads);            // Throws Error.
  const Linear* linear(const std::string& tensor) const;  // nullptr: absent

  const Kernels& kernels;
  Gguf file;
  ThreadPool pool;
  Tokenizer tokenizer;
  std::string dtype;
  std::optional<ActScale> act_scale;  // none: as RKSIM_ACT_SCALE says; of sessions made from now on
  bool kv_fp32;                       // fp32 models keep the cache in fp32: they are the reference
  const Description description;
  const Shape& shape;
  const Features& features;
  const Tensor* embedding;
  std::vector<Layer> layers;
  Norm output_norm;
  Linear output;

 private:
  void read_dtype();
  void check_nothing_else() const;
  Layer load_layer(int index);
  const Tensor& need(const std::string& name, GgmlType type, const std::vector<uint64_t>& dims);
  Norm load_norm(const std::string& name, int64_t n, bool needed = false);
  const float* load_vector(const std::string& name, int64_t n);
  const float* load_bias(const std::string& name, int64_t n);
  Linear load_linear(const std::string& name, int64_t n, int64_t k);
  bool has_one_scale(const std::string& name) const;
  void check_alike(const Linear& a, const Linear& b, const std::string& block) const;
  void pack(const std::string& name, Linear& linear);
  uint8_t* packed_room(size_t bytes);

  GgmlType weight_type_;
  uint32_t group_size_ = 0;
  bool hybrid_ = false;  // some layers have groups, some one scale a row
  std::map<std::string, Linear> linears_;
  std::set<std::string> read_;  // tensors by name
  std::vector<Pages> packed_;
  uint8_t* packed_next_ = nullptr;  // in the last of them
  size_t packed_left_ = 0;
};

class Lora;

// One sequence over a model. Not thread-safe; the model may serve one session at a time.
class Session {
 public:
  // The cache holds `context` positions; past them the oldest is dropped. Memory is taken as it is touched.
  Session(Model& model, int context);
  ~Session();
  void reset();
  // Goes back to `position`, which must still be in the cache, and forgets what came after.
  void rewind(int64_t position);
  // The first `positions` stay when the context is full and its oldest are dropped; fewer than the context.
  void keep(int64_t positions);
  void use(const Lora* lora);  // from the next token on; nullptr: the model alone
  int64_t position() const;    // tokens evaluated since reset

  // Logits of the last token, [n_vocab], valid until the next call. n >= 1; ids must be in range (Error).
  // all_hidden, n x hidden, gets every token's last_hidden().
  const float* eval(const int32_t* ids, size_t n, float* all_hidden = nullptr);
  // The input embeddings of n tokens, n x hidden.
  void embed(const int32_t* ids, size_t n, float* out) const;
  // As eval(), from input embeddings, n x hidden.
  const float* eval_embeddings(const float* x, size_t n, float* all_hidden = nullptr);
  // Logits of hidden states, n x hidden, into out, n x n_vocab.
  void logits_of(const float* hidden, size_t n, float* out);
  // Logits of every token, n x n_vocab. `progress`, if there is one, is told after each chunk how many are done.
  void eval_all(const int32_t* ids, size_t n, float* logits, void (*progress)(size_t done) = nullptr);
  // Keys and values of the first `tokens` positions, all of which must still be there; and an empty session's first
  // `tokens` from those of `stored` positions. Bits that eval() would compute again.
  std::vector<uint8_t> save_kv(int64_t tokens) const;
  void load_kv(const std::vector<uint8_t>& kv, int64_t stored, int64_t tokens);
  size_t kv_token_bytes() const;
  // What must not be mixed in one cache: RKSIM_ACT_SCALE as a number, and whether RoPE's long factors are in use.
  uint32_t arithmetic() const;
  static constexpr uint32_t kLongFactors = 1u << 8;
  int64_t reusable(int64_t n) const;  // of n equal tokens, those after which a prompt may go on
  // The hidden states behind the last logits: after the output norm, [hidden].
  const float* last_hidden() const;

  // Taps. One block on n tokens at positions 0.. of an empty cache; one linear layer.
  void run_layer(int layer, const float* x, size_t n, float* y);
  void run_linear(const Linear& layer, const float* x, size_t n, float* y);

  // Tokens evaluated at once in prefill; results do not depend on it.
  static constexpr size_t kDefaultChunk = 128;
  size_t chunk = kDefaultChunk;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace rksim
