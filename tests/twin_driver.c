/* A program over librkllmrt.so of 1.2.0, 1.2.3 or 1.3.1 (-DABI=120, 123, 131) and that release's header alone; C11 and
 * C++17. It does what its arguments say in their order, and prints what came back, one line each:
 *   ret CALL VALUE                          what a function returned
 *   cb RUN STATE TOKEN TEXT THREAD          a callback's first result, as tests/rkllm_driver.c prints it
 *   item RUN INDEX TOKEN TEXT               each of them, where there are several
 *   rows RUN hidden|logits SIZE COUNT VALUES  in hex
 *   perf RUN PREFILL_TOKENS GENERATE_TOKENS PREFILL_MS GENERATE_MS MEMORY_MB
 * Texts are in hex, - is empty. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "rkllm.h"

#define MOST 8
// clang-format off: it never ends with this
#define FUNCTIONS(F)                                                                                          \
  F(rkllm_createDefaultParam) F(rkllm_init) F(rkllm_destroy) F(rkllm_run) F(rkllm_run_async) F(rkllm_abort)   \
  F(rkllm_is_running) F(rkllm_clear_kv_cache) F(rkllm_set_chat_template) F(rkllm_load_prompt_cache)           \
  F(rkllm_load_lora) F(rkllm_release_prompt_cache)
// clang-format on
#if ABI >= 123
#define MORE_FUNCTIONS(F) F(rkllm_get_kv_cache_size) F(rkllm_set_function_tools) F(rkllm_set_cross_attn_params)
#else
#define MORE_FUNCTIONS(F)
#endif
#define POINTER(name) static __typeof__(&name) name##_;
FUNCTIONS(POINTER)
MORE_FUNCTIONS(POINTER)

static LLMHandle handle;
/* Room for what a library of another release may write as its defaults. */
typedef union {
  RKLLMParam param;
  char room[256];
} Room;
static Room given;
static RKLLMInput inputs[MOST];
static RKLLMLoraParam lora;
static RKLLMLoraAdapter adapter;
static RKLLMInferParam infer, *infer_given = &infer;
static RKLLMPromptCacheParam cache;
static long run_number, calls, act_at = -1;
static const char *action = "";
static int reply, without_userdata;
static pthread_t main_thread;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static int over;

static void die(const char *what, const char *which) {
  fprintf(stderr, "driver: %s %s\n", what, which);
  exit(3);
}

static void load(const char *path) {
  void *library = dlopen(path, RTLD_NOW);
  if (!library) die("dlopen:", dlerror());
/* One that another release lacks is not there, and not called. */
#define LOAD(name)                            \
  {                                           \
    void *symbol = dlsym(library, #name);     \
    memcpy(&name##_, &symbol, sizeof symbol); \
  }
  FUNCTIONS(LOAD)
  MORE_FUNCTIONS(LOAD)
}

static void ret(const char *call, int value) { printf("ret %s %d\n", call, value); }

static void print_hex(const void *data, size_t size) {
  for (size_t i = 0; i < size; i++) printf("%02x", ((const unsigned char *)data)[i]);
}

static void print_text(const char *text) {
  if (text && *text) print_hex(text, strlen(text));
  else printf(text ? "-" : "NULL");
}

static int batch(void) {
#if ABI >= 123
  if (given.param.extend_param.n_batch > 1) return given.param.extend_param.n_batch;
#endif
  return 1;
}

static void print_result(const RKLLMResult *result, long run, LLMCallState state) {
  printf("cb %ld %d ", run, state);
  if (result) printf("%d ", result->token_id);
  else printf("NULL ");
  print_text(result ? result->text : NULL);
  printf(" %s\n", pthread_equal(pthread_self(), main_thread) ? "main" : "other");
  if (!result) return;
  for (int i = 0; i < batch() && batch() > 1; i++) {
    printf("item %ld %d %d ", run, i, result[i].token_id);
    print_text(result[i].text);
    printf("\n");
  }
  for (int i = 0; i < batch(); i++) {
    const RKLLMResultLastHiddenLayer *h = &result[i].last_hidden_layer;
    const RKLLMResultLogits *l = &result[i].logits;
    if (h->hidden_states) {
      printf("rows %ld hidden %d %d ", run, h->embd_size, h->num_tokens);
      print_hex(h->hidden_states, sizeof(float) * (size_t)h->embd_size * (size_t)h->num_tokens);
      printf("\n");
    }
    if (l->logits) {
      printf("rows %ld logits %d %d ", run, l->vocab_size, l->num_tokens);
      print_hex(l->logits, sizeof(float) * (size_t)l->vocab_size * (size_t)l->num_tokens);
      printf("\n");
    }
  }
#if ABI >= 123
  const RKLLMPerfStat *p = &result->perf;
  if (state == RKLLM_RUN_FINISH || p->prefill_tokens)
    printf("perf %ld %d %d %.3f %.3f %.3f\n", run, p->prefill_tokens, p->generate_tokens, (double)p->prefill_time_ms,
           (double)p->generate_time_ms, (double)p->memory_usage_mb);
#endif
}

static void do_now(const char *what);

static int heard(RKLLMResult *result, void *userdata, LLMCallState state) {
  flockfile(stdout);
  print_result(result, (long)(intptr_t)userdata, state);
  funlockfile(stdout);
  const int now = calls++ == act_at;
  if (now && *action) do_now(action);
  if (state == RKLLM_RUN_FINISH || state == RKLLM_RUN_ERROR) {
    pthread_mutex_lock(&mutex);
    over = 1;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&mutex);
  }
  return now ? reply : 0;
}

#if ABI >= 123
static int on_result(RKLLMResult *result, void *userdata, LLMCallState state) { return heard(result, userdata, state); }
#else
static void on_result(RKLLMResult *result, void *userdata, LLMCallState state) { heard(result, userdata, state); }
#endif

#if ABI >= 131
static RKLLMCallback callback;
static RKLLMSamplingParam sampling;
static int fail_callbacks, first_id;
/* A token for each byte. */
static int tokenize(void *userdata, const char *text, int32_t text_len, int32_t *tokens, int32_t max_tokens) {
  printf("tokenize %ld ", (long)(intptr_t)userdata);
  print_text(text);
  printf("\n");
  if (fail_callbacks) return fail_callbacks;
  for (int32_t i = 0; i < text_len && i < max_tokens; i++) tokens[i] = (unsigned char)text[i];
  if (first_id) tokens[0] = first_id;
  return text_len;
}

/* All the same, told by the first token. */
static int embed(void *userdata, int32_t *tokens, uint64_t n, void *embeddings, uint64_t bytes) {
  printf("embed %ld %d %lu %lu\n", (long)(intptr_t)userdata, tokens[0], (unsigned long)n, (unsigned long)bytes);
  memset(embeddings, 0, (size_t)bytes);
  for (uint64_t i = 0; i < n; i++) ((float *)embeddings)[i * (bytes / n / sizeof(float))] = 1.0f;
  return fail_callbacks;
}
#endif

static void act(const char *what) {
  void *userdata = without_userdata ? NULL : (void *)(intptr_t)run_number;
  if (!strcmp(what, "run")) ret(what, rkllm_run_(handle, inputs, infer_given, userdata));
  else if (!strcmp(what, "run_async")) ret(what, rkllm_run_async_(handle, inputs, infer_given, userdata));
  else if (!strcmp(what, "abort")) ret(what, rkllm_abort_(handle));
  else if (!strcmp(what, "is_running")) ret(what, rkllm_is_running_(handle));
  else if (!strcmp(what, "destroy")) ret(what, rkllm_destroy_(handle)), handle = NULL;
  else if (!strcmp(what, "load_prompt_cache")) ret(what, rkllm_load_prompt_cache_(handle, cache.prompt_cache_path));
#if ABI >= 123
  else if (!strcmp(what, "size")) {
    int sizes[MOST];
    ret(what, rkllm_get_kv_cache_size_(handle, sizes));
    printf("sizes");
    for (int i = 0; i < batch(); i++) printf(" %d", sizes[i]);
    printf("\n");
  } else if (!strcmp(what, "cross")) {
    RKLLMCrossAttnParam cross;
    memset(&cross, 0, sizeof cross);
    ret(what, rkllm_set_cross_attn_params_(handle, &cross));
  }
#endif
  else
    die("unknown call", what);
}

static void set(char *text) {
  char *value = strchr(text, '=');
  if (!value) die("set wants NAME=VALUE, not", text);
  *value++ = 0;
#define FIELD(name, read)     \
  if (!strcmp(text, #name)) { \
    given.param.name = read;  \
    return;                   \
  }
  FIELD(max_context_len, atoi(value))
  FIELD(max_new_tokens, atoi(value))
  FIELD(top_k, atoi(value))
  FIELD(n_keep, atoi(value))
  FIELD(top_p, strtof(value, NULL))
  FIELD(temperature, strtof(value, NULL))
  FIELD(repeat_penalty, strtof(value, NULL))
  FIELD(presence_penalty, strtof(value, NULL))
  FIELD(skip_special_token, atoi(value) != 0)
  FIELD(extend_param.enabled_cpus_mask, (uint32_t)atoi(value))
#if ABI >= 123
  FIELD(extend_param.n_batch, (uint8_t)atoi(value))
  FIELD(extend_param.use_cross_attn, (int8_t)atoi(value))
#endif
#if ABI >= 131
  FIELD(ignore_eos_token, atoi(value) != 0)
#else
  FIELD(img_start, value)
  FIELD(img_end, value)
  FIELD(img_content, value)
#endif
#undef FIELD
  die("no such parameter:", text);
}

/* The parts between carets. */
static char *part(char **text) {
  char *begin = *text, *bar = begin ? strchr(begin, '^') : NULL;
  if (bar) *bar = 0;
  *text = bar ? bar + 1 : NULL;
  return begin;
}

static void read_tokens(char *text, RKLLMInput *input) {
  static int32_t ids[MOST][4096];
  int32_t *to = ids[input - inputs];
  size_t n = 0;
  for (char *item = strtok(text, ","); item && n < 4096; item = strtok(NULL, ",")) to[n++] = atoi(item);
  input->input_type = RKLLM_INPUT_TOKEN;
  input->token_input.input_ids = to;
  input->token_input.n_tokens = n;
}

/* PER_IMAGE,IMAGES,FILE with float32 values. */
static void read_image(char *text) {
  static float values[1 << 14];
  char *images = strchr(text, ','), *path = images ? strchr(images + 1, ',') : NULL;
  FILE *file = path ? fopen(path + 1, "rb") : NULL;
  if (!file || !fread(values, sizeof *values, 1 << 14, file)) die("cannot read", text);
  fclose(file);
  inputs[0].input_type = RKLLM_INPUT_MULTIMODAL;
#if ABI >= 131
  inputs[0].multimodal_input.image.image_embed = values;
  inputs[0].multimodal_input.image.n_image_tokens = strtoull(text, NULL, 10);
  inputs[0].multimodal_input.image.n_image = strtoull(images + 1, NULL, 10);
#else
  inputs[0].multimodal_input.image_embed = values;
  inputs[0].multimodal_input.n_image_tokens = strtoull(text, NULL, 10);
#if ABI >= 123
  inputs[0].multimodal_input.n_image = strtoull(images + 1, NULL, 10);
#endif
#endif
}

static int init(char *path) {
  given.param.model_path = path;
#if ABI >= 131
  callback.result_callback = on_result;
  return rkllm_init_(&handle, &given.param, &callback);
#else
  return rkllm_init_(&handle, &given.param, on_result);
#endif
}

static int clear(char *text) {
#if ABI >= 123
  int keep = atoi(text), begin[MOST] = {0}, end[MOST] = {0};
  char *range = strchr(text, ',');
  if (!range) return rkllm_clear_kv_cache_(handle, keep, NULL, NULL);
  begin[0] = atoi(range + 1);
  end[0] = atoi(strchr(range + 1, ',') + 1);
  return rkllm_clear_kv_cache_(handle, keep, begin, end);
#else
  return rkllm_clear_kv_cache_(handle, atoi(text));
#endif
}

static void start(const char *call) {
  run_number++;
  calls = 0;
  over = 0;
  act(call);
}

static void wait_for_end(void) {
  pthread_mutex_lock(&mutex);
  while (!over) pthread_cond_wait(&changed, &mutex);
  pthread_mutex_unlock(&mutex);
  while (rkllm_is_running_(handle)) sched_yield();
}

/* Of releases from 1.2.1 and 1.3 on. */
static int newer_command(const char *verb, char *value) {
#if ABI >= 123
  if (!strcmp(verb, "role")) inputs[0].role = value;
  else if (!strcmp(verb, "think")) inputs[0].enable_thinking = atoi(value) != 0;
  else if (!strcmp(verb, "tools")) {
    char *system = part(&value), *list = part(&value);
    ret(verb, rkllm_set_function_tools_(handle, system, list, value));
  } else
#endif
#if ABI >= 131
      if (!strcmp(verb, "sampling")) {
    sampling.top_k = atoi(value);
    sampling.top_p = sampling.temperature = sampling.repeat_penalty = 1;
    infer.sampling_params = &sampling;
  } else if (!strcmp(verb, "max")) infer.max_new_tokens = atoi(value);
  else if (!strcmp(verb, "result_userdata")) callback.result_userdata = (void *)(intptr_t)atoi(value);
  else if (!strcmp(verb, "tokenizer"))
    callback.tokenizer_callback = tokenize, callback.tokenizer_userdata = (void *)(intptr_t)atoi(value);
  else if (!strcmp(verb, "embedder"))
    callback.embed_callback = embed, callback.embed_userdata = (void *)(intptr_t)atoi(value);
  else if (!strcmp(verb, "fail")) fail_callbacks = atoi(value);
  else if (!strcmp(verb, "first_id")) first_id = atoi(value);
  else
#endif
    return (void)verb, (void)value, 0;
  return 1;
}

static void command(const char *verb, char *value) {
  if (newer_command(verb, value)) return;
  if (!strcmp(verb, "set")) set(value);
  else if (!strcmp(verb, "init")) ret(verb, init(value));
  else if (!strcmp(verb, "prompt")) inputs[0].input_type = RKLLM_INPUT_PROMPT, inputs[0].prompt_input = value;
  else if (!strcmp(verb, "prompts")) {
    for (int i = 0; i < MOST && value; i++)
      inputs[i].input_type = RKLLM_INPUT_PROMPT, inputs[i].prompt_input = part(&value);
  } else if (!strcmp(verb, "tokens")) read_tokens(value, inputs);
  else if (!strcmp(verb, "tokens1")) read_tokens(value, inputs + 1);
  else if (!strcmp(verb, "image")) read_image(value);
  else if (!strcmp(verb, "image_prompt")) inputs[0].multimodal_input.prompt = value;
  else if (!strcmp(verb, "mode")) infer.mode = (RKLLMInferMode)atoi(value);
  else if (!strcmp(verb, "adapter")) {
    adapter.lora_adapter_name = part(&value), adapter.lora_adapter_path = value, adapter.scale = 1;
    ret("load_lora", rkllm_load_lora_(handle, &adapter));
  } else if (!strcmp(verb, "lora")) lora.lora_adapter_name = value, infer.lora_params = *value ? &lora : NULL;
  else if (!strcmp(verb, "history")) infer.keep_history = atoi(value);
  else if (!strcmp(verb, "save")) {
    cache.save_prompt_cache = atoi(value);
    infer.prompt_cache_params = &cache;
  } else if (!strcmp(verb, "cache")) cache.prompt_cache_path = value;
  else if (!strcmp(verb, "at")) act_at = atoi(value);
  else if (!strcmp(verb, "do")) action = value;
  else if (!strcmp(verb, "reply")) reply = atoi(value);
  else if (!strcmp(verb, "template")) {
    char *system = part(&value), *prefix = part(&value);
    ret(verb, rkllm_set_chat_template_(handle, system, prefix, value));
  } else if (!strcmp(verb, "clear")) ret(verb, clear(value));
  else die("unknown command", verb);
}

/* A command, or a call. */
static void do_now(const char *what) {
  char copy[256];
  snprintf(copy, sizeof copy, "%s", what);
  char *value = strchr(copy, ':');
  if (value) *value++ = 0;
  if (value) command(copy, value);
  else act(copy);
}

int main(int argc, char **argv) {
  if (argc < 2) die("usage: driver LIBRARY", "COMMAND...");
  main_thread = pthread_self();
  load(argv[1]);
  Room (*defaults)(void);
  memcpy(&defaults, &rkllm_createDefaultParam_, sizeof defaults);
  given = defaults();
  for (int i = 2; i < argc; i++) {
    char *value = strchr(argv[i], ':');
    if (value) *value++ = 0;
    if (value) command(argv[i], value);
    else if (!strcmp(argv[i], "wait")) wait_for_end();
    else if (!strcmp(argv[i], "no_userdata")) without_userdata = 1;
    else if (!strcmp(argv[i], "no_infer")) infer_given = NULL;
    else if (!strcmp(argv[i], "run") || !strcmp(argv[i], "run_async")) start(argv[i]);
    else act(argv[i]);
    fflush(stdout);
  }
  if (handle) rkllm_destroy_(handle);
  return 0;
}
