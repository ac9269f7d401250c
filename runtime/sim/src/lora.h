// LoRA adapters in llama.cpp's GGUF layout (docs/sim-gguf.md), in float32 over a model of any dtype.
#pragma once
#include <map>
#include <string>
#include <vector>

#include "model.h"

namespace rksim {

// What one linear layer gains: y += scale * B (A x).
struct LoraPair {
  Linear a, b;  // rank x K and N x rank, both F32
  float scale;
};

class Lora {
 public:
  // Throws Error when the file is no adapter, or not one for this model. `scale` is the user's.
  Lora(const std::string& path, const Model& model, float scale);
  const LoraPair* find(const Linear& layer) const;  // nullptr: the layer stays as it is
  size_t layers() const { return pairs_.size(); }
  uint32_t checksum() const { return checksum_; }  // of everything that an answer depends on; never 0

 private:
  Linear load(const Gguf& file, const Tensor& tensor, const Model& model, int heads);

  std::map<int, LoraPair> pairs_;  // by the layer's id
  std::vector<std::vector<float>> values_;
  uint32_t checksum_ = 0;
};

}  // namespace rksim
