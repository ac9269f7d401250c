#include "description.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string_view>
#include <utility>

#include "error.h"

namespace rksim {
namespace {

constexpr uint32_t kMaxLayers = 4096, kMaxHeads = 4096, kMaxContext = 1u << 30;  // far above any model
constexpr float kLeastNumber = 1e-12f, kMostNumber = 1e12f;

// A feature that this runtime does not know would change every answer: it is refused, not skipped.
constexpr std::string_view kKnown[] = {
    "version",
    "dtype",
    "group_size",
    "hybrid_rate",
    "header_crc32",
    "family",
    "adapters_interleaved",
    "rotation",
    "eos_token_ids",
    "lstrip_token_ids",
    "rstrip_token_ids",
    "normalised_token_ids",
    "ignore_merges",
    "nfc",
    "chat.system",
    "chat.prefix",
    "chat.postfix",
    "chat.between",
    "chat.thinking",
    "chat.tools",
    "chat.refused",
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "vocab_size",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.layer_norm_rms_epsilon",
    "attention.layer_norm_epsilon",
    "attention.scale",
    "attention.sliding_window",
    "attention.temperature_scale",
    "attention.temperature_length",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "embedding_scale",
    "residual_scale",
    "logit_scale",
    "use_parallel_residual",
    "activation",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.freq_base_local",
    "rope.layers",
    "rope.scaling.attn_factor",
    "rope.scaling.original_context_length",
};

// The keys of one file: version 2 has those of a shape under another prefix, and no features.
class Keys {
 public:
  explicit Keys(const Gguf& file) : file_(file), prefix_(file.version() < 3 ? "llama." : "rksim.") {
    const std::string_view architecture = file.need_string("general.architecture");
    if (std::string(architecture) + "." != prefix_)
      throw Error(file.path() + ": general.architecture is '" + std::string(architecture) + "', and version " +
                  std::to_string(file.version()) + " of the format has " + prefix_.substr(0, prefix_.size() - 1));
    if (file.version() < 3) return;
    for (const std::string& key : file.keys())
      if (!known(key))
        throw Error(file.path() + " asks for " + key + ", which this runtime does not know: update rk3588");
  }

  std::string name(const char* key) const { return prefix_ + key; }
  bool has(const char* key) const { return file_.f32(name(key)).has_value(); }

  int size(const char* key, uint32_t most) const { return bounded(key, file_.need_u32(name(key)), most); }

  int size_or(const char* key, int otherwise, uint32_t most) const {
    const auto value = file_.u32(name(key));
    return value ? bounded(key, *value, most) : otherwise;
  }

  float number(const char* key) const { return positive(key, file_.need_f32(name(key))); }

  float number_or(const char* key, float otherwise) const {
    const auto value = file_.f32(name(key));
    return value ? positive(key, *value) : otherwise;
  }

  // One number for each layer; absent: `otherwise` for all.
  std::vector<int> by_layer(const char* key, int layers, int otherwise, int most) const {
    const auto values = file_.i32s(name(key));
    if (!values) return std::vector<int>(static_cast<size_t>(layers), otherwise);
    if (values->size() != static_cast<size_t>(layers))
      fail(key, "has " + std::to_string(values->size()) + " values for " + std::to_string(layers) + " layers");
    for (int32_t value : *values)
      if (value < 0 || value > most) fail(key, "holds " + std::to_string(value));
    return {values->begin(), values->end()};
  }

  // A key that another one would have to give a meaning.
  void refuse(const char* key, const std::string& why) const {
    if (file_.has(name(key))) fail(key, why);
  }

  [[noreturn]] void fail(const char* key, const std::string& what) const {
    throw Error(file_.path() + ": " + name(key) + " " + what);
  }

 private:
  // Of the tokenizer's keys and the general ones others are no business of the transformer's.
  bool known(std::string_view key) const {
    if (key.rfind("general.", 0) == 0 || key.rfind("tokenizer.", 0) == 0) return true;
    if (key.rfind(prefix_, 0) != 0) return false;
    return std::find(std::begin(kKnown), std::end(kKnown), key.substr(prefix_.size())) != std::end(kKnown);
  }

  int bounded(const char* key, uint32_t value, uint32_t most) const {
    if (value == 0 || value > most)
      fail(key, "is " + std::to_string(value) + ", not between 1 and " + std::to_string(most));
    return static_cast<int>(value);
  }

  float positive(const char* key, float value) const {
    if (!(value >= kLeastNumber && value <= kMostNumber)) fail(key, "is not a number from 1e-12 to 1e12");
    return value;
  }

  const Gguf& file_;
  const std::string prefix_;
};

Shape read_shape(const Gguf& file, const Keys& keys) {
  const Shape shape{keys.size("block_count", kMaxLayers),
                    keys.size("embedding_length", kMaxSide),
                    keys.size("feed_forward_length", kMaxSide),
                    keys.size("attention.head_count", kMaxHeads),
                    keys.size("attention.head_count_kv", kMaxHeads),
                    keys.size("attention.key_length", kMaxHeads),
                    keys.size("vocab_size", 1u << 24),
                    keys.size("context_length", kMaxContext)};
  if (shape.n_heads % shape.n_kv_heads || shape.head_dim % 2)
    throw Error(file.path() + ": " + std::to_string(shape.n_heads) + " heads cannot share " +
                std::to_string(shape.n_kv_heads) + " KV heads of size " + std::to_string(shape.head_dim));
  return shape;
}

// base^(-2i / dims), divided by the factors where there are some, [dims / 2].
std::vector<double> frequencies(float base, int dims, const float* factors) {
  std::vector<double> found;
  for (int i = 0; i < dims / 2; i++)
    found.push_back(std::pow(double{base}, -2.0 * i / dims) / (factors ? double{factors[i]} : 1.0));
  return found;
}

constexpr const char *kFactors = "rope_freqs.weight", *kLongFactors = "rope_factors_long.weight";

const float* factors(const Gguf& file, const char* name, int dims) {
  if (!file.tensor(name)) return nullptr;
  const float* values = need_vector(file, name, dims / 2);
  for (int i = 0; i < dims / 2; i++)
    if (values[i] == 0) throw Error(file.path() + ": tensor " + name + " divides a frequency by zero");
  return values;
}

Rope read_rope(const Gguf& file, const Keys& keys, const Shape& shape) {
  Rope rope;
  rope.dims = keys.size_or("rope.dimension_count", shape.head_dim, kMaxHeads);
  if (rope.dims % 2 || rope.dims > shape.head_dim)
    keys.fail("rope.dimension_count",
              "is " + std::to_string(rope.dims) + " of a head of " + std::to_string(shape.head_dim));
  rope.base = keys.number("rope.freq_base");
  rope.attention_factor = double{keys.number_or("rope.scaling.attn_factor", 1.0f)};
  rope.frequencies = frequencies(rope.base, rope.dims, factors(file, kFactors, rope.dims));
  if (const float* wide = factors(file, kLongFactors, rope.dims)) {
    rope.long_frequencies = frequencies(rope.base, rope.dims, wide);
    rope.short_context = keys.size("rope.scaling.original_context_length", kMaxContext);
  }
  if (keys.has("rope.freq_base_local"))
    rope.local_frequencies = frequencies(keys.number("rope.freq_base_local"), rope.dims, nullptr);
  for (int table : keys.by_layer("rope.layers", shape.n_layers, Rope::kBase, Rope::kLocal)) {
    if (table == Rope::kLocal && rope.local_frequencies.empty())
      keys.fail("rope.layers", "names a local base, and there is none");
    rope.layers.push_back(static_cast<Rope::Table>(table));
  }
  return rope;
}

Features read_features(const Gguf& file, const Keys& keys, const Shape& shape) {
  Features f;
  f.norm = keys.has("attention.layer_norm_epsilon") ? NormKind::kLayer : NormKind::kRms;
  if (f.norm == NormKind::kLayer && keys.has("attention.layer_norm_rms_epsilon"))
    throw Error(file.path() + " has the epsilons of both kinds of norms, " + keys.name("attention.layer_norm_epsilon") +
                " and " + keys.name("attention.layer_norm_rms_epsilon"));
  f.norm_eps =
      keys.number(f.norm == NormKind::kLayer ? "attention.layer_norm_epsilon" : "attention.layer_norm_rms_epsilon");
  const std::string_view activation = file.string(keys.name("activation")).value_or("silu");
  if (activation != "silu" && activation != "gelu_tanh")
    keys.fail("activation", "is " + std::string(activation) + ": there are silu and gelu_tanh");
  f.activation = activation == "silu" ? Activation::kSilu : Activation::kGeluTanh;
  f.parallel = file.boolean(keys.name("use_parallel_residual")).value_or(false);
  f.attention_scale = keys.number_or("attention.scale", 1.0f / std::sqrt(static_cast<float>(shape.head_dim)));
  f.attention_soft_cap = keys.number_or("attn_logit_softcapping", 0);
  f.logit_soft_cap = keys.number_or("final_logit_softcapping", 0);
  f.embedding_scale = keys.number_or("embedding_scale", 1);
  f.residual_scale = keys.number_or("residual_scale", 1);
  f.logit_scale = keys.number_or("logit_scale", 1);
  f.temperature_scale = keys.number_or("attention.temperature_scale", 0);
  if (f.temperature_scale != 0)
    f.temperature_length = keys.size("attention.temperature_length", kMaxContext);
  else
    keys.refuse("attention.temperature_length", "is nothing without " + keys.name("attention.temperature_scale"));
  f.windows = keys.by_layer("attention.sliding_window", shape.n_layers, 0, kMaxContext);
  f.rope = read_rope(file, keys, shape);
  return f;
}

}  // namespace

Description describe(const Gguf& file) {
  const Keys keys(file);
  const Shape shape = read_shape(file, keys);
  Features features = read_features(file, keys, shape);
  if (file.version() < 3) return {shape, std::move(features), "llama", true, ""};
  return {shape, std::move(features), std::string(file.need_string(keys.name("family"))),
          file.boolean(keys.name("adapters_interleaved")).value_or(false),
          std::string(file.string(keys.name("rotation")).value_or(""))};
}

bool is_described(const std::string& tensor) { return tensor == kFactors || tensor == kLongFactors; }

const float* need_vector(const Gguf& file, const std::string& name, int64_t n) {
  const Tensor& tensor = file.need_tensor(name, GgmlType::F32, {static_cast<uint64_t>(n)});
  const float* values = reinterpret_cast<const float*>(tensor.data);
  for (int64_t i = 0; i < n; i++)
    if (!std::isfinite(values[i])) throw Error(file.path() + ": tensor " + name + " has a value that is not finite");
  return values;
}

}  // namespace rksim
