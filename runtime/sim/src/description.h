// What the transformer of one model does: its sizes and features, as the header of its file has them.
// docs/sim-gguf.md says what each key means, docs/numerics.md what is computed.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "gguf.h"

namespace rksim {

// The most inputs or outputs of a layer: far above any model, and counted in 32 bits everywhere, while a product of two
// of them overflows nothing.
constexpr uint32_t kMaxSide = 1u << 20;

enum class NormKind { kRms, kLayer };
enum class Activation { kSilu, kGeluTanh };

struct Shape {
  int n_layers, hidden, intermediate, n_heads, n_kv_heads, head_dim, n_vocab, context_length;
};

// RoPE's inverse frequencies, in radians per position, [dims / 2] each.
struct Rope {
  enum Table { kNone, kBase, kLocal };  // which of them a layer turns by

  int dims = 0;  // how much of a head turns, from its beginning
  float base = 0;
  double attention_factor = 1;  // what cosines and sines are multiplied by
  std::vector<double> frequencies, local_frequencies;
  std::vector<double> long_frequencies;  // instead of `frequencies` in a context above short_context; empty: never
  int short_context = 0;
  std::vector<Table> layers;  // [layers]

  bool is_long(int64_t context) const { return !long_frequencies.empty() && context > short_context; }
};

struct Features {
  NormKind norm = NormKind::kRms;
  float norm_eps = 0;
  Activation activation = Activation::kSilu;
  bool parallel = false;  // attention and MLP read the same norm, and both are added to what it read
  float attention_scale = 0;
  float attention_soft_cap = 0, logit_soft_cap = 0;  // 0: none
  float embedding_scale = 1, residual_scale = 1, logit_scale = 1;
  float temperature_scale = 0;  // queries at position p grow by 1 + this * ln(1 + floor(p / temperature_length))
  int temperature_length = 0;
  std::vector<int> windows;  // [layers]: positions a token sees, itself included; 0: all
  Rope rope;
};

struct Description {
  Shape shape;
  Features features;
  std::string family;         // what llama.cpp calls this architecture: its adapters name it
  bool adapters_interleaved;  // their rows of Q and K are as llama.cpp has them for this family, not as ours
  std::string rotation;       // the basis of hidden states and of input embeddings; "": that of the model's authors
};

// Both from the header of `file`; its RoPE tensors are read as well. Throws Error, also on a key it does not know.
Description describe(const Gguf& file);

// Whether describe() reads this tensor, as it does those of RoPE factors.
bool is_described(const std::string& tensor);

// A vector of n finite float32. Throws Error.
const float* need_vector(const Gguf& file, const std::string& name, int64_t n);

}  // namespace rksim
