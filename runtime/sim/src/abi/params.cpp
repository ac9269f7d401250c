// RKLLMParam, as each release has it.
#include <cmath>
#include <utility>

#include "../error.h"
#include "../log.h"
#include "../settings.h"
#include "abi.h"
#include "caller.h"

namespace rksim::abi {
namespace {

constexpr int kDefaultContext = 512;
#if RKSIM_ABI < 120
constexpr int kBoardContext = 4096;  // past it the real 1.1.x degrades
#else
constexpr int kMostContext = 16384;  // that a model can be built for
constexpr int kMostBatch = 8;
constexpr int kMostKeep = 1 << 24;  // far above any context
constexpr uint32_t kAllCpus = 0xff, kBigCpus = CPU4 | CPU5 | CPU6 | CPU7;
#endif

template <class P>
SamplerParams sampling(const P& p) {
  const std::pair<const char*, float> all[] = {{"top_p", p.top_p},
                                               {"temperature", p.temperature},
                                               {"repeat_penalty", p.repeat_penalty},
                                               {"frequency_penalty", p.frequency_penalty},
                                               {"presence_penalty", p.presence_penalty}};
  for (const auto& [name, value] : all)
    if (!std::isfinite(value)) throw Error(std::string(name) + " is not a finite number");
  if (p.repeat_penalty <= 0)
    throw Error("repeat_penalty is " + std::to_string(p.repeat_penalty) + ": it must be above 0; 1 switches it off");
  if (p.mirostat) log_warning("mirostat is not simulated: top_k, top_p and temperature are used");
  SamplerParams s;
  s.top_k = p.top_k;
  s.top_p = p.top_p;
  s.temperature = p.temperature;
  s.repeat_penalty = p.repeat_penalty;
  s.frequency_penalty = p.frequency_penalty;
  s.presence_penalty = p.presence_penalty;
  return s;
}

int context_setting(const RKLLMParam& p) {
  const int context = p.max_context_len > 0 ? p.max_context_len : kDefaultContext;
  if (context <= kAnswerReserve)
    throw Error("max_context_len is " + std::to_string(context) + ": it must be above " +
                std::to_string(kAnswerReserve));
  return context;
}

void check_flag(const bool& flag, const char* name, const char* releases) {
  expect(raw<unsigned char>(flag) <= 1, std::string(name) + " is neither false nor true", releases);
}

#if RKSIM_ABI < 120
void check_caller(const RKLLMParam& p) {
  constexpr const char* kLater = "1.2 or 1.3";
  const auto bits = raw<int32_t>(p.top_p);  // n_keep stands there
  expect(bits == 0 || bits < -1 || bits >= 1 << 20, "top_p is " + std::to_string(p.top_p), kLater);
  check_flag(p.skip_special_token, "skip_special_token", kLater);
  check_flag(p.is_async, "is_async", kLater);
  expect_readable(p.model_path, "model_path", kLater);
  expect_readable(p.img_start, "img_start", kLater);
  expect_readable(p.img_end, "img_end", kLater);
  expect_readable(p.img_content, "img_content", kLater);
}
#else
void check_caller(const RKLLMParam& p) {
  // 1.1 has top_p there.
  expect(std::abs(static_cast<int64_t>(p.n_keep)) < kMostKeep, "n_keep is " + std::to_string(p.n_keep), "1.1");
#if RKSIM_ABI >= 131
  constexpr const char* kOthers = "1.1 or 1.2";
  check_flag(p.ignore_eos_token, "ignore_eos_token", kOthers);
  // The texts and the processors of 1.2 lie in what is reserved here.
  const RKLLMExtendParam& e = p.extend_param;
  for (const uint8_t byte : e.reserved) expect(byte == 0, "extend_param.reserved is not zero", kOthers);
  expect(e.enabled_cpus_mask <= kAllCpus, "enabled_cpus_mask is " + std::to_string(e.enabled_cpus_mask), kOthers);
#else
  constexpr const char* kOthers = "1.1 or 1.3";
  expect_readable(p.img_start, "img_start", kOthers);
  expect_readable(p.img_end, "img_end", kOthers);
  expect_readable(p.img_content, "img_content", kOthers);
#endif
  check_flag(p.skip_special_token, "skip_special_token", kOthers);
  check_flag(p.is_async, "is_async", kOthers);
  expect_readable(p.model_path, "model_path", kOthers);
}

Ways ways() {
  Ways w;
  w.history = true;
  w.tells_end = end_token_told_setting();
  w.keeps_outputs = true;
  w.keeps_prompt = negative_keep_is_prompt_setting();
  w.last_logits = last_logits_setting();
  w.pauses = RKSIM_ABI >= 123;
  w.finishes_paused = finish_after_pause_setting();
  w.quiet_refusal = RKSIM_ABI >= 131;
  return w;
}

int batch_setting([[maybe_unused]] const RKLLMExtendParam& e) {
#if RKSIM_ABI >= 123
  if (e.n_batch > kMostBatch)
    throw Error("n_batch is " + std::to_string(e.n_batch) + ": there can be 1 to " + std::to_string(kMostBatch));
  if (e.use_cross_attn) throw Error("use_cross_attn: cross attention is not simulated");
  return e.n_batch ? e.n_batch : 1;
#else
  return 1;
#endif
}

void say_cpus(const RKLLMExtendParam& e) {
  std::string cpus;
  for (int i = 0; i < 8; i++)
    if (e.enabled_cpus_mask >> i & 1) cpus += (cpus.empty() ? "" : ", ") + std::to_string(i);
  log_line("I rkllm", "Enabled cpus: [" + cpus + "]");
  log_line("I rkllm", "Enabled cpus num: " + std::to_string(e.enabled_cpus_num));
}
#endif

std::string text_of(const char* text) { return text ? text : ""; }

}  // namespace

RKLLMParam default_params() {
  RKLLMParam p{};
  p.max_context_len = kDefaultContext;
  p.max_new_tokens = -1;
  p.top_k = 40;
  p.top_p = 0.9f;
  p.temperature = 0.8f;
  p.repeat_penalty = 1.1f;
  p.mirostat_tau = 5.0f;
  p.mirostat_eta = 0.1f;
  p.skip_special_token = true;
#if RKSIM_ABI >= 120
  p.n_keep = -1;
  p.extend_param.enabled_cpus_num = 4;
  p.extend_param.enabled_cpus_mask = kBigCpus;
#endif
#if RKSIM_ABI >= 123
  p.extend_param.n_batch = 1;
#endif
  return p;
}

SamplerParams read_sampling(const RKLLMParam& p) {
  SamplerParams s = sampling(p);
  s.seed = seed_setting();
  return s;
}

#if RKSIM_ABI >= 131
SamplerParams read_sampling(const RKLLMSamplingParam& p) { return sampling(p); }
#endif

Init read_params(const RKLLMParam* param) {
  Init init;
  const RKLLMParam& p = init.given = copied(param);
  check_caller(p);
  init.path = text_of(p.model_path);
#if RKSIM_ABI < 131
  init.run.image = {text_of(p.img_start), text_of(p.img_content), text_of(p.img_end)};
#endif
  return init;
}

void read_settings(Init& init) {
  const RKLLMParam& p = init.given;
  RunParams& run = init.run;
  run.context = context_setting(p);
  run.max_new_tokens = p.max_new_tokens;
  run.skip_special = p.skip_special_token;
  run.sampler = read_sampling(p);
  run.faults = faults_setting();
  run.past_context = past_context_setting();
  run.figures = figures_setting();
#if RKSIM_ABI >= 120
  run.keep = p.n_keep;
  run.sequences = batch_setting(p.extend_param);
  run.ways = ways();
  say_cpus(p.extend_param);
#endif
#if RKSIM_ABI >= 131
  run.ignore_end = p.ignore_eos_token;
#endif
}

void check_context(const Init& init, const Shape& shape) {
#if RKSIM_ABI < 120
  const std::string said = "max_context_len " + std::to_string(init.run.context);
  if (init.run.context > shape.context_length)
    log_warning(said + " is above the " + std::to_string(shape.context_length) + " of the model");
  if (init.run.context > kBoardContext)
    log_warning(said + ": on an RK3588, answers degrade past " + std::to_string(kBoardContext) + " tokens");
#else
  const int limit = shape.context_length < kMostContext ? shape.context_length : kMostContext;
  if (init.run.context > limit)
    throw Error("max_context[" + std::to_string(init.run.context) +
                "] must be less than the model's max_context_limit[" + std::to_string(limit) + "]");
#endif
}

}  // namespace rksim::abi
