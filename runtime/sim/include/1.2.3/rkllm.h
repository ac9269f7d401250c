/* RKLLM 1.2.1 to 1.2.3 C interface, written for the simulated runtime from the published layout of the ABI.
 * Layout is fixed: LP64, the same on x86-64 and AArch64. Compiles as C11 and as C++17. */
#ifndef RKLLM_H
#define RKLLM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* For enabled_cpus_mask. */
#define CPU0 (1 << 0)
#define CPU1 (1 << 1)
#define CPU2 (1 << 2)
#define CPU3 (1 << 3)
#define CPU4 (1 << 4)
#define CPU5 (1 << 5)
#define CPU6 (1 << 6)
#define CPU7 (1 << 7)

/* The libraries are compiled with everything hidden; what is declared here is not. */
#pragma GCC visibility push(default)
#ifdef __cplusplus
extern "C" {
#endif

typedef void *LLMHandle;

/* What a call of the callback means. Hidden states and logits come with RKLLM_RUN_NORMAL. */
typedef enum {
  RKLLM_RUN_NORMAL = 0,  /* a token, or what another mode asked for */
  RKLLM_RUN_WAITING = 1, /* a token that ends inside a UTF-8 character: no text, that comes later */
  RKLLM_RUN_FINISH = 2,
  RKLLM_RUN_ERROR = 3
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
  RKLLM_INFER_GET_LOGITS = 2
} RKLLMInferMode;

typedef struct {
  int32_t base_domain_id;
  int8_t embed_flash; /* 1: the embedding table is read from the file, not kept in memory */
  int8_t enabled_cpus_num;
  uint32_t enabled_cpus_mask; /* CPU4 | CPU5 | ...: where the library's threads run */
  uint8_t n_batch;            /* runs at once: 1 to 8 */
  int8_t use_cross_attn;
  uint8_t reserved[104];
} RKLLMExtendParam;

typedef struct {
  const char *model_path;
  int32_t max_context_len;
  int32_t max_new_tokens; /* -1: until the end of the answer */
  int32_t top_k;
  int32_t n_keep; /* tokens at the beginning that stay when a full window is shifted */
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
  float *image_embed;    /* n_image x n_image_tokens x hidden */
  size_t n_image_tokens; /* of each image */
  size_t n_image;
  size_t image_width;
  size_t image_height;
} RKLLMMultiModalInput;
typedef RKLLMMultiModalInput RKLLMMultiModelInput; /* its name before 1.2.3 */

typedef struct {
  const char *role;     /* "user", or "tool": then the prompt is JSON */
  bool enable_thinking; /* the native template opens the model's thinking */
  RKLLMInputType input_type;
  union {
    const char *prompt_input;
    RKLLMEmbedInput embed_input;
    RKLLMTokenInput token_input;
    RKLLMMultiModalInput multimodal_input;
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
  float *encoder_k_cache; /* [layer][token][kv head][dim] */
  float *encoder_v_cache; /* [layer][kv head][dim][token] */
  float *encoder_mask;
  int32_t *encoder_pos;
  int num_tokens;
} RKLLMCrossAttnParam;

typedef struct {
  RKLLMInferMode mode;
  RKLLMLoraParam *lora_params;                /* NULL: the base model */
  RKLLMPromptCacheParam *prompt_cache_params; /* NULL: no cache */
  int keep_history;                           /* 1: the next run goes on where this one ends */
} RKLLMInferParam;

typedef struct {
  const float *hidden_states; /* num_tokens x embd_size */
  int embd_size;
  int num_tokens;
} RKLLMResultLastHiddenLayer;

typedef struct {
  const float *logits; /* num_tokens x vocab_size */
  int vocab_size;
  int num_tokens;
} RKLLMResultLogits;

typedef struct {
  float prefill_time_ms;
  int prefill_tokens;
  float generate_time_ms;
  int generate_tokens;
  float memory_usage_mb;
} RKLLMPerfStat;

typedef struct {
  const char *text; /* may be NULL */
  int32_t token_id;
  RKLLMResultLastHiddenLayer last_hidden_layer;
  RKLLMResultLogits logits;
  RKLLMPerfStat perf; /* of the run, when it is over */
} RKLLMResult;

/* Returns 0 to go on, 1 to pause the run, which ends then and may be gone on with. With n_batch above 1, `result` is an
 * array of that many. */
typedef int (*LLMResultCallback)(RKLLMResult *result, void *userdata, LLMCallState state);

RKLLMParam rkllm_createDefaultParam(void);
int rkllm_init(LLMHandle *handle, RKLLMParam *param, LLMResultCallback callback);
int rkllm_load_lora(LLMHandle handle, RKLLMLoraAdapter *lora_adapter);
int rkllm_load_prompt_cache(LLMHandle handle, const char *prompt_cache_path);
int rkllm_release_prompt_cache(LLMHandle handle);
int rkllm_destroy(LLMHandle handle);
/* With n_batch above 1, `input` is an array of that many. */
int rkllm_run(LLMHandle handle, RKLLMInput *input, RKLLMInferParam *infer_params, void *userdata);
int rkllm_run_async(LLMHandle handle, RKLLMInput *input, RKLLMInferParam *infer_params, void *userdata);
int rkllm_abort(LLMHandle handle);
/* Rockchip's header of this release says 0 while a run goes on; measured it is the other way round, 1 while running. A
 * program keeps its own state. The simulated runtime answers as measured (RKSIM_IS_RUNNING). */
int rkllm_is_running(LLMHandle handle);
/* Forgets what runs with keep_history left: all of it, all but the system prompt, or, while a run is paused, what lies
 * from start_pos to before end_pos (an array each, one of n_batch; NULL: no range). */
int rkllm_clear_kv_cache(LLMHandle handle, int keep_system_prompt, int *start_pos, int *end_pos);
/* How many tokens are kept: n_batch of them. */
int rkllm_get_kv_cache_size(LLMHandle handle, int *cache_sizes);
/* What stands in front of a conversation, and before and after each text of the user, instead of the model's own. Three
 * empty strings: prompts go in as they are given. */
int rkllm_set_chat_template(LLMHandle handle, const char *system_prompt, const char *prompt_prefix,
                            const char *prompt_postfix);
/* `tools`: a JSON list of functions. `tool_response_str` marks what a role "tool" gives back. */
int rkllm_set_function_tools(LLMHandle handle, const char *system_prompt, const char *tools,
                             const char *tool_response_str);
int rkllm_set_cross_attn_params(LLMHandle handle, RKLLMCrossAttnParam *cross_attn_params);

#ifdef __cplusplus
}
#endif
#pragma GCC visibility pop
#endif
