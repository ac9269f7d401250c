// RKLLMInput and RKLLMInferParam, as each release has them.
#include <cstring>
#include <string>

#include "../error.h"
#include "../log.h"
#include "abi.h"
#include "caller.h"

namespace rksim::abi {
namespace {

// Where a run that names no file saves its prompt cache (the manual's table 3-17).
constexpr const char* kDefaultCachePath = "./prompt_cache.bin";
#if RKSIM_ABI >= 123
constexpr const char* kOtherInputs = "1.1 or 1.2.0";
#else
constexpr const char* kOtherInputs = "1.2.1 or later";
#endif

template <class T>
const T* need(const T* pointer, const char* name) {
  if (!pointer) throw Error(std::string(name) + " is NULL");
  expect_readable(pointer, name, kOtherInputs);
  return pointer;
}

// More than a context can hold are not looked at: they are refused by their number.
void copy_embeddings(std::vector<float>& to, const float* values, size_t tokens, const Runtime& runtime) {
  if (tokens > static_cast<size_t>(runtime.context())) return;
  to.assign(values, values + tokens * static_cast<size_t>(runtime.shape().hidden));
}

#if RKSIM_ABI >= 123
size_t product(size_t a, size_t b) {
  size_t found;
  return __builtin_mul_overflow(a, b, &found) ? SIZE_MAX : found;
}

// `count` images of `size` embeddings each.
Media counted(Media m, const float* embeddings, const char* name, size_t size, size_t count, const Runtime& runtime) {
  m.size = size;
  m.count = count;
  copy_embeddings(m.embeddings, need(embeddings, name), product(size, count), runtime);
  return m;
}
#endif

#if RKSIM_ABI >= 131
std::string text_of(const char* text) { return text ? text : ""; }

void copy_media(Request& r, const RKLLMMultiModalInput& m, const Runtime& runtime) {
  const auto& [image, video, audio] = std::tie(m.image, m.video, m.audio);
  if (image.image_embed || image.n_image)
    r.media.push_back(counted({"<image>",
                               "image",
                               "n_image_tokens",
                               "image_content",
                               {text_of(image.image_start), text_of(image.image_content), text_of(image.image_end)},
                               0,
                               {},
                               {}},
                              image.image_embed, "image_embed", image.n_image_tokens, image.n_image, runtime));
  if (video.video_embed || video.n_video)
    r.media.push_back(counted({"<video>",
                               "video",
                               "n_frame_tokens",
                               "video_content",
                               {text_of(video.video_start), text_of(video.video_content), text_of(video.video_end)},
                               0,
                               {},
                               {}},
                              video.video_embed, "video_embed", product(video.n_frame_tokens, video.n_frame_per_video),
                              video.n_video, runtime));
  if (audio.audio_embed || audio.n_audio)
    r.media.push_back(counted({"<audio>",
                               "audio",
                               "n_audio_tokens",
                               "audio_content",
                               {text_of(audio.audio_start), text_of(audio.audio_content), text_of(audio.audio_end)},
                               0,
                               {},
                               {}},
                              audio.audio_embed, "audio_embed", audio.n_audio_tokens, audio.n_audio, runtime));
  if (r.media.empty())
    throw Error("a multimodal input needs embeddings: image_embed, video_embed and audio_embed are NULL");
}
#elif RKSIM_ABI >= 123
void copy_media(Request& r, const RKLLMMultiModalInput& m, const Runtime& runtime) {
  r.media.push_back(counted({"<image>", "image", "n_image_tokens", "img_content", runtime.image(), 0, {}, {}},
                            m.image_embed, "multimodal_input.image_embed", m.n_image_tokens, m.n_image, runtime));
}
#else
void copy_media(Request& r, const RKLLMMultiModelInput& m, const Runtime& runtime) {
  Media image{"<image>", "image", "n_image_tokens", "img_content", runtime.image(), m.n_image_tokens, {}, {}};
  copy_embeddings(image.embeddings, need(m.image_embed, "multimodal_input.image_embed"), image.size, runtime);
  r.media.push_back(std::move(image));
}
#endif

// First of all: the caller's memory is not looked at again.
void copy_content(Request& r, const RKLLMInput& input, const Runtime& runtime) {
  switch (r.type) {
    case InputType::kPrompt: r.prompt = need(input.prompt_input, "prompt_input"); return;
    case InputType::kToken: {
      const int32_t* ids = need(input.token_input.input_ids, "token_input.input_ids");
      r.tokens = input.token_input.n_tokens;
      if (r.tokens <= static_cast<size_t>(runtime.context())) r.ids.assign(ids, ids + r.tokens);
      return;
    }
    case InputType::kEmbed:
      runtime.check_takes_embeddings("RKLLM_INPUT_EMBED");
      r.tokens = input.embed_input.n_tokens;
      copy_embeddings(r.embeddings, need(input.embed_input.embed, "embed_input.embed"), r.tokens, runtime);
      return;
    case InputType::kMultimodal:
      runtime.check_takes_embeddings("RKLLM_INPUT_MULTIMODAL");
      r.prompt = need(input.multimodal_input.prompt, "multimodal_input.prompt");
      copy_media(r, input.multimodal_input, runtime);
      return;
  }
}

Request read_input(const RKLLMInput* given, const Runtime& runtime) {
  const RKLLMInput input = copied(given);
  const int type = raw<int>(input.input_type);
  const std::string unknown = "unknown input type " + std::to_string(type);
  Request r;
#if RKSIM_ABI >= 123
  expect_readable(input.role, "role", kOtherInputs);
  expect(raw<unsigned char>(input.enable_thinking) <= 1, "enable_thinking is neither false nor true", kOtherInputs);
  r.thinking = input.enable_thinking;
  r.of_tool = input.role && !std::strcmp(input.role, "tool");
  if (input.role && !r.of_tool && std::strcmp(input.role, "user") && *input.role)
    throw Error("unknown role '" + std::string(input.role) + "': there are user and tool");
#endif
  expect(type > -0x100 && type < 0x100, unknown, kOtherInputs);  // no enumerator, but half of an address
  if (type < RKLLM_INPUT_PROMPT || type > RKLLM_INPUT_MULTIMODAL) throw Error(unknown);
  r.type = static_cast<InputType>(type);
  copy_content(r, input, runtime);
  return r;
}

void read_cache(Request& r, const RKLLMPromptCacheParam& cache) {
  if (!cache.save_prompt_cache) return;
  r.save_cache = cache.prompt_cache_path ? cache.prompt_cache_path : kDefaultCachePath;
  if (r.save_cache.empty()) throw Error("prompt_cache_path is empty");
  if (r.type == InputType::kEmbed || r.type == InputType::kMultimodal)
    throw Error("a prompt of embeddings has no tokens to find it by: it cannot be saved");
}

// What holds for a whole run.
void read_infer(Request& r, const RKLLMInferParam& infer, Runtime& runtime) {
#if RKSIM_ABI >= 131
  constexpr const char* kOthers = "1.2";
  expect_readable(infer.sampling_params, "sampling_params", kOthers);
#elif RKSIM_ABI >= 120
  constexpr const char* kOthers = "1.1 or 1.3";
#endif
#if RKSIM_ABI >= 120
  expect(infer.keep_history == 0 || infer.keep_history == 1,
         "keep_history is " + std::to_string(infer.keep_history) + ", neither 0 nor 1", kOthers);
  r.keep_history = infer.keep_history;
#endif
#if RKSIM_ABI >= 131
  if (infer.sampling_params) r.sampling = read_sampling(copied(infer.sampling_params));
  if (infer.max_new_tokens > 0) r.max_new_tokens = infer.max_new_tokens;
#endif
  if (infer.prompt_cache_params) read_cache(r, *infer.prompt_cache_params);
  // A run that names an adapter must not answer without it.
  if (infer.lora_params)
    r.lora = runtime.lora(need(infer.lora_params->lora_adapter_name, "lora_params->lora_adapter_name"));
}

Mode mode_of(const RKLLMInferParam& infer) {
  const int mode = raw<int>(infer.mode);
  switch (mode) {
    case RKLLM_INFER_GENERATE: return Mode::kGenerate;
    case RKLLM_INFER_GET_LAST_HIDDEN_LAYER: return Mode::kHidden;
#if RKSIM_ABI >= 120
    case RKLLM_INFER_GET_LOGITS: return Mode::kLogits;
#endif
    default: throw Error("unknown infer mode " + std::to_string(mode));
  }
}

}  // namespace

Requests read_requests(const RKLLMInput* input, const RKLLMInferParam* infer, void* userdata, Runtime& runtime) {
  need(input, "input");
  const RKLLMInferParam params = infer ? copied(infer) : RKLLMInferParam{};
  const Mode mode = mode_of(params);
  if (mode == Mode::kHidden) runtime.tell_basis();
  Requests requests;
  for (size_t i = 0; i < runtime.sequences(); i++) {
    requests.push_back(read_input(input + i, runtime));
    requests.back().mode = mode;
    requests.back().userdata = userdata;
    if (infer) read_infer(requests.back(), params, runtime);
  }
  if (!infer) log_warning("infer_params is NULL: RKLLM_INFER_GENERATE without LoRA and prompt cache is taken");
  if (requests.size() > 1 && !requests[0].save_cache.empty())
    throw Error("a prompt cache is of one prompt: it cannot be saved with n_batch above 1");
  return requests;
}

}  // namespace rksim::abi
