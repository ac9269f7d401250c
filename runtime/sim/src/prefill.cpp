// The beginning of a run: its prompt, of whatever kind, through the model.
#include <algorithm>
#include <cmath>
#include <string_view>

#include "error.h"
#include "log.h"
#include "runtime.h"

namespace rksim {
namespace {

constexpr std::string_view kImageMark = "<image>";
constexpr int32_t kEmbedding = -1;  // in the place of an id: an image's embedding stands here

void check_finite(const std::vector<float>& values, const char* what) {
  for (float x : values)
    if (!std::isfinite(x)) throw Error(std::string("the ") + what + " embeddings hold a value that is not finite");
}

std::vector<std::string_view> split(std::string_view text, std::string_view mark) {
  std::vector<std::string_view> parts;
  for (size_t at; (at = text.find(mark)) != text.npos; text.remove_prefix(at + mark.size()))
    parts.push_back(text.substr(0, at));
  parts.push_back(text);
  return parts;
}

}  // namespace

CacheKey Runtime::cache_key(const Lora* lora) const {
  return {model_->file.checksum(), lora ? lora->checksum() : 0, session_.arithmetic()};
}

void Runtime::check_room(size_t tokens) const {
  if (tokens == 0) throw Error("the prompt has no tokens");
  const auto most = static_cast<size_t>(params_.context - kAnswerReserve);
  if (tokens > most)
    throw Error("prompt gather than max context (" + std::to_string(tokens) + " tokens > " + std::to_string(most) +
                ")");
}

std::vector<int32_t> Runtime::text_ids(const Request& request) const {
  const Tokenizer& t = model_->tokenizer;
  std::vector<int32_t> ids = t.encode(request.prompt, false, true);
  if (t.add_bos() && t.bos_id() >= 0 && (ids.empty() || ids.front() != t.bos_id())) ids.insert(ids.begin(), t.bos_id());
  return ids;
}

// Ids, with kEmbedding for each embedding of each image: they come in the order of the prompt's <image> marks.
std::vector<int32_t> Runtime::image_prompt(const Request& request) const {
  const Tokenizer& t = model_->tokenizer;
  const ImageFrame& frame = params_.image;
  const auto parts = split(request.prompt, kImageMark);
  const size_t images = parts.size() - 1;
  if (images == 0) throw Error("the prompt of a multimodal input has no <image>: write it where the image belongs");
  if (request.tokens == 0) throw Error("n_image_tokens is 0: a multimodal input needs an image's embeddings");
  if (request.tokens % images)
    throw Error("n_image_tokens is " + std::to_string(request.tokens) + ", which the prompt's " +
                std::to_string(images) + " <image> cannot share evenly: every image must have as many as the others");
  check_room(request.tokens);
  if (t.encode(frame.content, false, true).size() != 1)
    log_warning("img_content '" + frame.content +
                "' is no token of this model: on a board, embeddings replace such tokens");
  std::vector<int32_t> ids;
  for (size_t i = 0; i <= images; i++) {
    const bool first = i == 0;
    const std::string text = (first ? "" : frame.end) + std::string(parts[i]) + (i < images ? frame.start : "");
    const auto found = t.encode(text, false, true, first);
    if (first && t.add_bos() && t.bos_id() >= 0 && (found.empty() || found.front() != t.bos_id()))
      ids.push_back(t.bos_id());
    ids.insert(ids.end(), found.begin(), found.end());
    if (i < images) ids.insert(ids.end(), request.tokens / images, kEmbedding);
  }
  return ids;
}

// The logits after the prompt; all_hidden (nullptr: not wanted) gets the hidden state of each of its tokens.
const float* Runtime::prefill(const Request& request, std::vector<float>* all_hidden) {
  sleep_ms(params_.faults.prefill_ms);
  act_at(params_.faults, 0);
  const float* logits = nullptr;
  switch (request.type) {
    case RKLLM_INPUT_PROMPT:
    case RKLLM_INPUT_TOKEN: logits = prefill_tokens(request, all_hidden); break;
    case RKLLM_INPUT_EMBED:
      check_room(request.tokens);
      check_finite(request.embeddings, "input");
      logits = prefill_embeddings(request.embeddings, all_hidden);
      break;
    case RKLLM_INPUT_MULTIMODAL: logits = prefill_images(request, all_hidden); break;
  }
  figures_.prefilled(static_cast<size_t>(session_.position()));
  return logits;
}

const float* Runtime::prefill_tokens(const Request& request, std::vector<float>* all_hidden) {
  const bool text = request.type == RKLLM_INPUT_PROMPT;
  const std::vector<int32_t> ids = text ? text_ids(request) : request.ids;
  check_room(text ? ids.size() : request.tokens);
  if (all_hidden) all_hidden->resize(ids.size() * static_cast<size_t>(shape().hidden));
  const size_t known = cache_ && !all_hidden ? reuse_cache(ids, request.lora) : 0;
  const float* logits =
      session_.eval(ids.data() + known, ids.size() - known, all_hidden ? all_hidden->data() : nullptr);
  if (!request.save_cache.empty()) {
    PromptCache saved{cache_key(request.lora), ids, session_.save_kv(static_cast<int64_t>(ids.size()))};
    write_prompt_cache(request.save_cache, saved);
  }
  for (int32_t id : ids) sampler_.accept(id);
  return logits;
}

// x: [tokens][hidden]
const float* Runtime::prefill_embeddings(const std::vector<float>& x, std::vector<float>* all_hidden) {
  if (all_hidden) all_hidden->resize(x.size());
  return session_.eval_embeddings(x.data(), x.size() / static_cast<size_t>(shape().hidden),
                                  all_hidden ? all_hidden->data() : nullptr);
}

const float* Runtime::prefill_images(const Request& request, std::vector<float>* all_hidden) {
  const std::vector<int32_t> ids = image_prompt(request);
  check_room(ids.size());
  check_finite(request.embeddings, "image");
  const auto hidden = static_cast<size_t>(shape().hidden);
  std::vector<float> x(ids.size() * hidden);  // [ids][hidden]
  const float* image = request.embeddings.data();
  for (size_t i = 0; i < ids.size(); i++) {
    if (ids[i] == kEmbedding) {
      std::copy_n(image, hidden, &x[i * hidden]);
      image += hidden;
    } else {
      session_.embed(&ids[i], 1, &x[i * hidden]);
      sampler_.accept(ids[i]);
    }
  }
  return prefill_embeddings(x, all_hidden);
}

// Starts the session with what the cache knows of this prompt: its beginning, but for the last token, whose logits are
// asked for.
size_t Runtime::reuse_cache(const std::vector<int32_t>& ids, const Lora* lora) {
  if (cache_->key.lora != cache_key(lora).lora) {
    log_line("I rksim", "the prompt cache is not used: it was saved with another LoRA");
    return 0;
  }
  const size_t most = std::min(ids.size() - 1, cache_->ids.size());
  const auto differs = std::mismatch(ids.begin(), ids.begin() + static_cast<std::ptrdiff_t>(most), cache_->ids.begin());
  const int64_t known = session_.reusable(differs.first - ids.begin());
  session_.load_kv(cache_->kv, static_cast<int64_t>(cache_->ids.size()), known);
  log_line("I rksim", "prompt cache: " + std::to_string(known) + " of " + std::to_string(ids.size()) + " tokens");
  return static_cast<size_t>(known);
}

}  // namespace rksim
