#include "lora.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string_view>

#include "error.h"

namespace rksim {
namespace {

void expect(const Gguf& file, const char* key, std::string_view expected) {
  const std::string found(file.string(key).value_or(""));
  if (found != expected)
    throw Error(file.path() + " is not a LoRA adapter for this model: " + key + " is '" + found + "', expected '" +
                std::string(expected) + "'");
}

// A rotated model's adapters are rotated as it is; without a word, others would change it to something else.
void check_rotation(const Gguf& file, const std::string& wanted) {
  const auto told = [](const std::string& rotation) {
    return rotation.empty() ? std::string("not rotated") : "rotated (" + rotation + ")";
  };
  const std::string found(file.string("rksim.rotation").value_or(""));
  if (found != wanted)
    throw Error(file.path() + " is for a model that is " + told(found) + ", and this one is " + told(wanted) +
                ": convert the adapter with its model (rkconvert --lora)");
}

struct Halves {
  const Tensor *a = nullptr, *b = nullptr;
};

std::map<std::string, Halves> halves_by_layer(const Gguf& file) {
  std::map<std::string, Halves> found;
  for (const Tensor& tensor : file.tensors()) {
    const size_t cut = tensor.name.size() < 7 ? 0 : tensor.name.size() - 7;
    const std::string layer = tensor.name.substr(0, cut), suffix = tensor.name.substr(cut);
    if (suffix == ".lora_a")
      found[layer].a = &tensor;
    else if (suffix == ".lora_b")
      found[layer].b = &tensor;
    else
      throw Error(file.path() + ": tensor " + tensor.name + " is not one of a LoRA (.lora_a, .lora_b)");
  }
  if (found.empty()) throw Error(file.path() + " holds no tensors: it would change nothing");
  return found;
}

const Linear& base_layer(const Gguf& file, const std::string& name, const Model& model) {
  const Linear* layer = model.linear(name);
  // In a tied fp16 or fp32 model the embedding is a linear layer, too, but an adapter of it is another thing.
  if (!layer || name == "token_embd.weight")
    throw Error(file.path() + " changes " + name + ", which is no linear layer of this model: is it for another one?");
  return *layer;
}

void check_shapes(const Gguf& file, const std::string& name, const Halves& halves, const Linear& layer) {
  if (!halves.a || !halves.b)
    throw Error(file.path() + " has only one of " + name + ".lora_a and " + name + ".lora_b: the file is not whole");
  const std::vector<uint64_t>&a = halves.a->dims, &b = halves.b->dims;
  const auto n = static_cast<uint64_t>(layer.n), k = static_cast<uint64_t>(layer.k);
  if (a.size() != 2 || b.size() != 2 || a[0] != k || b[1] != n || a[1] != b[0])
    throw Error(file.path() + ": the adapter of " + name + " has the shapes " + listed(a) + " and " + listed(b) +
                ", the model asks for [" + std::to_string(k) + ", rank] and [rank, " + std::to_string(n) +
                "]: is it for another one?");
}

// Of some families llama.cpp interleaves the two halves of each head in the rows of Q and K; ours stand one after the
// other. 0: the rows are as ours.
int permuted_heads(const std::string& layer, const Description& model) {
  if (!model.adapters_interleaved) return 0;
  const Shape& shape = model.shape;
  const auto ends = [&](std::string_view end) {
    return layer.size() > end.size() && layer.compare(layer.size() - end.size(), end.size(), end) == 0;
  };
  return ends(".attn_q.weight") ? shape.n_heads : ends(".attn_k.weight") ? shape.n_kv_heads : 0;
}

}  // namespace

Lora::Lora(const std::string& path, const Model& model, float scale) {
  const Gguf file(path, Gguf::Content::kAdapter, 1);
  expect(file, "general.type", "adapter");
  expect(file, "adapter.type", "lora");
  expect(file, "general.architecture", model.description.family);
  check_rotation(file, model.description.rotation);
  const float alpha = file.f32("adapter.lora.alpha").value_or(0.0f);
  if (!std::isfinite(alpha)) throw Error(path + ": adapter.lora.alpha is not a finite number");
  for (const auto& [name, halves] : halves_by_layer(file)) {
    const Linear& layer = base_layer(file, name, model);
    check_shapes(file, name, halves, layer);
    LoraPair& pair = pairs_[layer.id];
    pair.a = load(file, *halves.a, model, 0);
    pair.b = load(file, *halves.b, model, permuted_heads(name, model.description));
    pair.scale = alpha != 0 ? scale * (alpha / static_cast<float>(pair.a.n)) : scale;
    checksum_ = crc32(checksum_, reinterpret_cast<const uint8_t*>(name.data()), name.size());
    checksum_ = crc32(checksum_, reinterpret_cast<const uint8_t*>(&pair.scale), sizeof pair.scale);
    for (const Linear* half : {&pair.a, &pair.b})
      checksum_ = crc32(checksum_, half->data, static_cast<size_t>(half->n * half->k) * sizeof(float));
  }
  checksum_ = std::max(checksum_, 1u);
}

Linear Lora::load(const Gguf& file, const Tensor& tensor, const Model& model, int heads) {
  Linear linear;
  linear.k = static_cast<int64_t>(tensor.dims[0]);
  linear.n = static_cast<int64_t>(tensor.dims[1]);
  linear.group = linear.k;
  linear.type = GgmlType::F32;
  const int64_t rows = heads ? linear.n / heads : linear.n, half = rows / 2;
  std::vector<float> row(static_cast<size_t>(linear.k)), values;
  values.reserve(static_cast<size_t>(linear.n * linear.k));
  const size_t row_bytes = tensor.bytes / static_cast<size_t>(linear.n);
  for (int64_t n = 0; n < linear.n; n++) {
    const int64_t head = n / rows, i = n % rows;
    const int64_t from = heads ? head * rows + (i % half) * 2 + i / half : n;
    const uint8_t* data = tensor.data + static_cast<size_t>(from) * row_bytes;
    if (tensor.type == GgmlType::F32)
      std::memcpy(row.data(), data, row_bytes);
    else if (tensor.type == GgmlType::F16)
      model.kernels.from_f16(reinterpret_cast<const uint16_t*>(data), row.data(), linear.k);
    else
      throw Error(file.path() + ": tensor " + tensor.name + " is neither F32 nor F16");
    for (float value : row)
      if (!std::isfinite(value))
        throw Error(file.path() + ": tensor " + tensor.name + " has a value that is not finite");
    values.insert(values.end(), row.begin(), row.end());
  }
  values_.push_back(std::move(values));
  linear.data = reinterpret_cast<const uint8_t*>(values_.back().data());
  return linear;
}

const LoraPair* Lora::find(const Linear& layer) const {
  const auto it = pairs_.find(layer.id);
  return it == pairs_.end() ? nullptr : &it->second;
}

}  // namespace rksim
