// From logits to a token, in llama.cpp's order: penalties, top-k, softmax, top-p, temperature, draw.
#pragma once
#include <cstdint>
#include <random>
#include <utility>
#include <vector>

namespace rksim {

struct SamplerParams {
  int32_t top_k = 40;  // 1: greedy after the penalties; <= 0: the whole vocabulary
  float top_p = 0.9f, temperature = 0.8f;
  float repeat_penalty = 1.1f, frequency_penalty = 0.0f, presence_penalty = 0.0f;
  int32_t penalty_last_n = 64;
  uint64_t seed = 0;
};

class Sampler {
 public:
  Sampler(const SamplerParams& params, int32_t n_vocab);
  // From the next token on; the random stream goes on, whatever their seed.
  void use(const SamplerParams& params) { params_ = params; }
  void reset();                         // forgets the tokens seen; the random stream goes on
  void accept(int32_t token);           // a token of the prompt or the answer
  int32_t sample(const float* logits);  // -1 when no logit is finite

 private:
  void penalise();
  void keep_top_k();
  void keep_top_p();
  int32_t draw();

  SamplerParams params_;
  int32_t n_vocab_;
  std::vector<int32_t> recent_;  // oldest first, at most penalty_last_n
  std::vector<std::pair<float, int32_t>> candidates_;
  std::mt19937_64 random_;
};

}  // namespace rksim
