// llama.cpp's default chain (penalties, top-k, top-p, temperature, draw), as far as RKLLM 1.1.1 has parameters for it.
//
// As there: penalties look at the last penalty_last_n tokens of prompt and answer together, once for each distinct
// token; top-p is cut on the softmax of the kept logits *before* temperature; a temperature of 0 or less is greedy.
// Unlike there, ties go to the lower id and the draw is one walk over the sorted candidates with 53 random bits, so
// that a seed gives the same answer with every compiler and standard library.
#include "sampler.h"

#include <algorithm>
#include <cmath>

namespace rksim {
namespace {

using Candidate = std::pair<float, int32_t>;  // logit, id

bool likelier(const Candidate& a, const Candidate& b) {
  return a.first != b.first ? a.first > b.first : a.second < b.second;
}

}  // namespace

Sampler::Sampler(const SamplerParams& params, int32_t n_vocab)
    : params_(params), n_vocab_(n_vocab), random_(params.seed) {
  candidates_.reserve(static_cast<size_t>(n_vocab));
}

void Sampler::reset() { recent_.clear(); }

void Sampler::accept(int32_t token) {
  if (params_.penalty_last_n <= 0 || token < 0 || token >= n_vocab_) return;
  if (recent_.size() == static_cast<size_t>(params_.penalty_last_n)) recent_.erase(recent_.begin());
  recent_.push_back(token);
}

// The candidates still stand in the order of their ids.
void Sampler::penalise() {
  for (auto it = recent_.begin(); it != recent_.end(); ++it) {
    if (std::find(recent_.begin(), it, *it) != it) continue;  // counted at its first appearance
    const auto count = static_cast<float>(std::count(it, recent_.end(), *it));
    float& logit = candidates_[static_cast<size_t>(*it)].first;
    logit = logit <= 0 ? logit * params_.repeat_penalty : logit / params_.repeat_penalty;
    logit -= count * params_.frequency_penalty + params_.presence_penalty;
  }
}

// Leaves the likeliest top_k, in any order.
void Sampler::keep_top_k() {
  const auto k = static_cast<size_t>(std::max(params_.top_k, 0));
  if (k == 0 || k >= candidates_.size()) return;
  const auto end = candidates_.begin() + static_cast<std::ptrdiff_t>(k);
  std::nth_element(candidates_.begin(), end, candidates_.end(), likelier);
  candidates_.erase(end, candidates_.end());
}

// Leaves the fewest of the likeliest whose probabilities reach top_p together; always one.
void Sampler::keep_top_p() {
  std::sort(candidates_.begin(), candidates_.end(), likelier);
  if (params_.top_p >= 1) return;
  const double most = candidates_.front().first;
  double total = 0, sum = 0;
  for (const Candidate& c : candidates_) total += std::exp(c.first - most);
  size_t kept = 0;
  while (kept < candidates_.size()) {
    sum += std::exp(candidates_[kept++].first - most);
    if (sum >= static_cast<double>(params_.top_p) * total) break;
  }
  candidates_.resize(kept);
}

int32_t Sampler::draw() {
  const double most = candidates_.front().first, temperature = params_.temperature;
  double total = 0;
  for (const Candidate& c : candidates_) total += std::exp((c.first - most) / temperature);
  const double target = static_cast<double>(random_() >> 11) * 0x1p-53 * total;
  double sum = 0;
  for (const Candidate& c : candidates_) {
    sum += std::exp((c.first - most) / temperature);
    if (target < sum) return c.second;
  }
  return candidates_.back().second;
}

int32_t Sampler::sample(const float* logits) {
  candidates_.clear();
  for (int32_t id = 0; id < n_vocab_; id++) candidates_.emplace_back(logits[id], id);
  penalise();
  candidates_.erase(std::remove_if(candidates_.begin(), candidates_.end(),
                                   [](const Candidate& c) { return !std::isfinite(c.first); }),
                    candidates_.end());
  if (candidates_.empty()) return -1;
  if (params_.top_k == 1 || params_.temperature <= 0)
    return std::min_element(candidates_.begin(), candidates_.end(), likelier)->second;
  keep_top_k();
  keep_top_p();
  return draw();
}

}  // namespace rksim
