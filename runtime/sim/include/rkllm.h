/* RKLLM 1.1.x C interface, written for the simulated runtime from the published layout of the ABI.
 * Layout is fixed: LP64, the same on x86-64 and AArch64. Compiles as C11 and as C++17. */
#ifndef RKLLM_H
#define RKLLM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The libraries are compiled with everything hidden; what is declared here is not. */
#pragma GCC visibility push(default)
#ifdef __cplusplus
extern "C" {
#endif

typedef void *LLMHandle;

/* What a call of the callback means. */
typedef enum {
  RKLLM_RUN_NORMAL = 0,  /* a token */
  RKLLM_RUN_WAITING = 1, /* a token that ends inside a UTF-8 character: its text comes later */
  RKLLM_RUN_FINISH = 2,
  RKLLM_RUN_ERROR = 3,
  RKLLM_RUN_GET_LAST_HIDDEN_LAYER = 4
} LLMCallState;

typedef enum {
  RKLLM_INPUT_PROMPT = 0,
  RKLLM_INPUT_TOKEN = 1,
  RKLLM_INPUT_EMBED = 2,
  RKLLM_INPUT_MULTIMODAL = 3
} RKLLMInputType;

typedef enum {
  RKLLM_INFER_GENERATE = 0,
  RKLLM_INFER_GET_LAST_HIDDEN_LAYER = 1,
} RKLLMInferMode;

typedef struct {
  int32_t base_domain_id;
  uint8_t reserved[112];
} RKLLMExtendParam;

typedef struct {
  const char *model_path;
  int32_t max_context_len;
  int32_t max_new_tokens; /* -1: until the end of the answer */
  int32_t top_k;
  float top_p;
  float temperature;
  float repeat_penalty;
  float frequency_penalty;
  float presence_penalty;
  int32_t mirostat;
  float mirostat_tau;
  float mirostat_eta;
  bool skip_special_token;
  bool is_async;
  const char *img_start; /* what <image> in a multimodal prompt becomes: this, */
  const char *img_end;
  const char *img_content; /* then this for each embedding, which replaces it, then img_end */
  RKLLMExtendParam extend_param;
} RKLLMParam;

typedef struct {
  const char *lora_adapter_path;
  const char *lora_adapter_name;
  float scale;
} RKLLMLoraAdapter;

typedef struct {
  float *embed; /* n_tokens x hidden */
  size_t n_tokens;
} RKLLMEmbedInput;

typedef struct {
  int32_t *input_ids;
  size_t n_tokens;
} RKLLMTokenInput;

typedef struct {
  char *prompt;          /* with an <image> for each image */
  float *image_embed;    /* n_image_tokens x hidden */
  size_t n_image_tokens; /* of all images together (as we read it; see docs/sim-runtime.md) */
} RKLLMMultiModelInput;

typedef struct {
  RKLLMInputType input_type;
  union {
    const char *prompt_input;
    RKLLMEmbedInput embed_input;
    RKLLMTokenInput token_input;
    RKLLMMultiModelInput multimodal_input;
  };
} RKLLMInput;

typedef struct {
  const char *lora_adapter_name;
} RKLLMLoraParam;

typedef struct {
  int save_prompt_cache;
  const char *prompt_cache_path; /* NULL: ./prompt_cache.bin */
} RKLLMPromptCacheParam;

typedef struct {
  RKLLMInferMode mode;
  RKLLMLoraParam *lora_params;                /* NULL: the base model */
  RKLLMPromptCacheParam *prompt_cache_params; /* NULL: no cache */
} RKLLMInferParam;

typedef struct {
  const float *hidden_states; /* num_tokens x embd_size, valid inside the callback only */
  int embd_size;
  int num_tokens;
} RKLLMResultLastHiddenLayer;

typedef struct {
  const char *text; /* may be NULL */
  int32_t token_id;
  RKLLMResultLastHiddenLayer last_hidden_layer;
} RKLLMResult;

typedef void (*LLMResultCallback)(RKLLMResult *result, void *userdata, LLMCallState state);

RKLLMParam rkllm_createDefaultParam(void);
int rkllm_init(LLMHandle *handle, RKLLMParam *param, LLMResultCallback callback);
int rkllm_load_lora(LLMHandle handle, RKLLMLoraAdapter *lora_adapter);
int rkllm_load_prompt_cache(LLMHandle handle, const char *prompt_cache_path);
int rkllm_release_prompt_cache(LLMHandle handle);
int rkllm_destroy(LLMHandle handle);
int rkllm_run(LLMHandle handle, RKLLMInput *input, RKLLMInferParam *infer_params, void *userdata);
int rkllm_run_async(LLMHandle handle, RKLLMInput *input, RKLLMInferParam *infer_params, void *userdata);
int rkllm_abort(LLMHandle handle);
/* Rockchip's header of 1.1 says 0 while a run goes on and non-zero otherwise; measured on a later library it is the
 * other way round, 1 while running and 0 idle, which Rockchip confirmed, and the header of 1.3 says so. Of a 1.1.1
 * library it is likely, not certain: a program keeps its own state. The simulated runtime answers as measured
 * (RKSIM_IS_RUNNING). */
int rkllm_is_running(LLMHandle handle);

#ifdef __cplusplus
}
#endif
#pragma GCC visibility pop
#endif
