// Between one release's structs and the engine. This folder is compiled once a release, over its own rkllm.h: RKSIM_ABI
// is its number (120 of 1.2.0), RKSIM_RELEASE its name.
#pragma once
#include "rkllm.h"

#include <string>

#include "../event.h"
#include "../params.h"
#include "../request.h"
#include "../runtime.h"

#ifndef RKSIM_ABI
#error "compile with RKSIM_ABI and RKSIM_RELEASE"
#endif

namespace rksim::abi {

RKLLMParam default_params();

// What rkllm_init was given, with its texts copied.
struct Init {
  RKLLMParam given;
  std::string path;
  RunParams run;
};

// The copy. Throws Error on what another release's program would give.
Init read_params(const RKLLMParam* param);
// What it means, together with the environment. Throws Error on what makes no sense.
void read_settings(Init& init);
// Throws Error, or warns, where the model cannot have such a context.
void check_context(const Init& init, const Shape& shape);
SamplerParams read_sampling(const RKLLMParam& p);

// One request for each sequence of the handle. Throws Error on what no run could make sense of.
Requests read_requests(const RKLLMInput* input, const RKLLMInferParam* infer, void* userdata, Runtime& runtime);

#if RKSIM_ABI >= 131
using Callback = RKLLMCallback*;
SamplerParams read_sampling(const RKLLMSamplingParam& p);
#else
using Callback = LLMResultCallback;
#endif
// Throws Error where the argument is none of this release's.
void check_callback(Callback callback);
Listener make_listener(Callback callback);  // empty: nobody listens
Helpers make_helpers(Callback callback);

}  // namespace rksim::abi
