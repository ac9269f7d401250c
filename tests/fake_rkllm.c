/* A librkllmrt that does what a script says, for tests of the binding. The script is the "model" file; a line each:
 *   init N            rkllm_init returns N
 *   nohandle          rkllm_init returns 0 and no handle
 *   banner            rkllm_init logs to stdout, as some releases do
 *   notemplate        rkllm_set_chat_template fails
 *   token ID HEX      NORMAL; HEX is the text's bytes, - is NULL, + is the empty string
 *   waiting ID HEX    WAITING
 *   null STATE        the callback with a NULL result
 *   empty STATE       the callback with a result whose text is NULL
 *   prefill MS        sleeps, and forgets the aborts that came meanwhile
 *   forever ID HEX MS tokens, MS apart, until aborted
 *   late ID HEX       a token under the userdata of the run before
 *   thread            all further callbacks come on another thread, while rkllm_run blocks
 *   detach            the same, but rkllm_run returns at once
 *   return N          rkllm_run returns N
 *   sampling          a token with the sampling that the run was given, from 1.3 on
 * -DRELEASE=N (111, 120, 123, 131) and the header beside it say which release it is. -DWITHOUT_ASYNC makes it look like
 * 1.0; -DWITH_CLEAR_KV_CACHE adds a function of 1.2 to 1.1; -DCPU_MASK=N and -DVERSION="X" have it lie about itself,
 * -DCRASH and -DHANG misbehave when it is asked for its defaults; -DIS_RUNNING=N: what rkllm_is_running says, whatever
 * goes on. */
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "rkllm.h"

#define EXPORT __attribute__((visibility("default")))
#ifndef RELEASE
#define RELEASE 111
#endif
#ifndef VERSION
#define VERSION "1.1.1"
#endif
#ifndef CPU_MASK
#define CPU_MASK 0xf0
#endif

static char script[1 << 16], journal[1 << 16], sampling_now[256];
static LLMResultCallback callback;
static volatile int aborted, running;
static void *userdata_now, *userdata_before;
static int the_handle;

static void note(const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  const size_t used = strlen(journal);
  vsnprintf(journal + used, sizeof journal - used, format, arguments);
  va_end(arguments);
}

EXPORT const char *fake_journal(void) { return journal; }

static void sleep_ms(long ms) {
  const struct timespec time = {ms / 1000, ms % 1000 * 1000000};
  nanosleep(&time, NULL);
}

EXPORT RKLLMParam rkllm_createDefaultParam(void) {
  RKLLMParam p;
  memset(&p, 0, sizeof p);
  p.max_context_len = 512;
  p.max_new_tokens = -1;
  p.top_k = 40;
  p.top_p = 0.9f;
  p.temperature = 0.8f;
  p.repeat_penalty = 1.1f;
  p.is_async = true;
#if RELEASE >= 120
  p.n_keep = -1;
  p.extend_param.enabled_cpus_num = 4;
  p.extend_param.enabled_cpus_mask = CPU_MASK;
#endif
#ifdef CRASH
  abort();
#endif
#ifdef HANG
  sleep_ms(60000);
#endif
  return p;
}

#if RELEASE >= 131
EXPORT int rkllm_init(LLMHandle *handle, RKLLMParam *p, RKLLMCallback *whole) {
  const LLMResultCallback with = whole->result_callback;
  if (whole->tokenizer_callback || whole->embed_callback) return -5;
#else
EXPORT int rkllm_init(LLMHandle *handle, RKLLMParam *p, LLMResultCallback with) {
#endif
  journal[0] = 0;
  note("init ctx=%d new=%d k=%d p=%g t=%g repeat=%g skip=%d async=%d\n", p->max_context_len, p->max_new_tokens,
       p->top_k, (double)p->top_p, (double)p->temperature, (double)p->repeat_penalty, p->skip_special_token,
       p->is_async);
#if RELEASE >= 120
  if (p->n_keep != -1 || p->extend_param.enabled_cpus_num != 4) return -4;
#endif
  FILE *file = fopen(p->model_path, "r");
  if (!file) return -1;
  script[fread(script, 1, sizeof script - 1, file)] = 0;
  fclose(file);
  callback = with;
  if (strstr(script, "banner")) printf("I rkllm: rkllm-runtime version: " VERSION "\n");
  int result;
  if (sscanf(script, "init %d", &result) == 1) return result;
  *handle = strncmp(script, "nohandle", 8) ? &the_handle : NULL;
  return 0;
}

static void give_text(int state, int id, const char *text, void *userdata);

static void give(int state, int id, const char *hex, void *userdata) {
  char text[256];
  size_t n = 0;
  for (; hex[0] != '-' && hex[0] != '+' && hex[2 * n] && hex[2 * n + 1]; n++) {
    unsigned byte;
    sscanf(hex + 2 * n, "%2x", &byte);
    text[n] = (char)byte;
  }
  text[n] = 0;
  give_text(state, id, hex[0] == '-' ? NULL : text, userdata);
}

static void give_text(int state, int id, const char *text, void *userdata) {
  RKLLMResult result;
  memset(&result, 0, sizeof result);
  result.text = text;
  result.token_id = id;
#if RELEASE >= 123
  if (state == RKLLM_RUN_FINISH) {
    result.perf.prefill_time_ms = 12.5f;
    result.perf.prefill_tokens = 6;
    result.perf.generate_time_ms = 100;
    result.perf.generate_tokens = 2;
    result.perf.memory_usage_mb = 512;
  }
  if (callback(&result, userdata, (LLMCallState)state)) note("paused\n");
#else
  callback(&result, userdata, (LLMCallState)state);
#endif
}

/* The rest of the script from `line` on; returns what rkllm_run is to return. */
static int play(char *line);

static void *play_on_thread(void *line) {
  play(line);
  return NULL;
}

static int step(char *line, char *rest, int *result) {
  char hex[256];
  int id, number;
  long ms;
  pthread_t thread;
  if (sscanf(line, "token %d %255s", &id, hex) == 2) {
    give(RKLLM_RUN_NORMAL, id, hex, userdata_now);
  } else if (sscanf(line, "waiting %d %255s", &id, hex) == 2) {
    give(RKLLM_RUN_WAITING, id, hex, userdata_now);
  } else if (sscanf(line, "late %d %255s", &id, hex) == 2) {
    give(RKLLM_RUN_NORMAL, id, hex, userdata_before);
  } else if (sscanf(line, "null %d", &number) == 1) {
    callback(NULL, userdata_now, (LLMCallState)number);
  } else if (sscanf(line, "empty %d", &number) == 1) {
    give(number, -1, "-", userdata_now);
  } else if (sscanf(line, "prefill %ld", &ms) == 1) {
    sleep_ms(ms);
    aborted = 0;
  } else if (sscanf(line, "forever %d %255s %ld", &id, hex, &ms) == 3) {
    for (; !aborted; sleep_ms(ms)) give(RKLLM_RUN_NORMAL, id, hex, userdata_now);
  } else if (strncmp(line, "sampling", 8) == 0) {
    give_text(RKLLM_RUN_NORMAL, 7, sampling_now, userdata_now);
  } else if (sscanf(line, "return %d", &number) == 1) {
    *result = number;
  } else if (strncmp(line, "detach", 6) == 0 || strncmp(line, "thread", 6) == 0) {
    pthread_create(&thread, NULL, play_on_thread, rest);
    if (line[0] == 't') pthread_join(thread, NULL);
    else pthread_detach(thread);
    return 0;
  }
  return 1;
}

static int play(char *line) {
  int result = 0;
  while (*line) {
    char *end = strchr(line, '\n');
    char *rest = end ? end + 1 : line + strlen(line);
    const int detached = strncmp(line, "detach", 6) == 0;
    if (!step(line, rest, &result)) return detached ? 1000 : 0;
    line = rest;
  }
  running = 0;
  return result;
}

EXPORT int rkllm_run(LLMHandle handle, RKLLMInput *input, RKLLMInferParam *infer, void *userdata) {
  (void)handle;
  running = 1;
  aborted = 0;
  userdata_before = userdata_now;
  userdata_now = userdata;
#if RELEASE >= 123
  if (input->role || input->enable_thinking) return -6;
#endif
#if RELEASE >= 120
  if (infer->keep_history) return -7;
#endif
#if RELEASE >= 131
  const RKLLMSamplingParam *s = infer->sampling_params;
  sampling_now[0] = 0;
  if (s) {
    snprintf(sampling_now, sizeof sampling_now,
             "k=%d p=%g t=%g repeat=%g frequency=%g presence=%g mirostat=%d tau=%g eta=%g", s->top_k, (double)s->top_p,
             (double)s->temperature, (double)s->repeat_penalty, (double)s->frequency_penalty,
             (double)s->presence_penalty, s->mirostat, (double)s->mirostat_tau, (double)s->mirostat_eta);
    note("sampling %s\n", sampling_now);
  }
  if (infer->max_new_tokens) return -8;
#endif
  if (input->input_type == RKLLM_INPUT_PROMPT) {
    note("run text %s", input->prompt_input);
  } else {
    note("run ids");
    for (size_t i = 0; i < input->token_input.n_tokens; i++) note(" %d", input->token_input.input_ids[i]);
  }
  const char *lora = infer->lora_params ? infer->lora_params->lora_adapter_name : "0";
  note(" mode=%d lora=%s cache=%d\n", infer->mode, lora, infer->prompt_cache_params != NULL);
  const int result = play(script);
  if (result == 1000) return 0;
  running = 0;
  return result;
}

EXPORT int rkllm_abort(LLMHandle handle) {
  (void)handle;
  aborted = 1;
  return running ? 0 : -1;
}

EXPORT int rkllm_is_running(LLMHandle handle) {
  (void)handle;
#ifdef IS_RUNNING
  return IS_RUNNING;
#else
  return running ? 0 : 1;
#endif
}

EXPORT int rkllm_destroy(LLMHandle handle) {
  note("destroy running=%d handle=%d\n", running, handle == &the_handle);
  return 0;
}

EXPORT int rkllm_load_lora(LLMHandle handle, RKLLMLoraAdapter *adapter) {
  (void)handle;
  note("lora %s %s %g\n", adapter->lora_adapter_path, adapter->lora_adapter_name, (double)adapter->scale);
  return strcmp(adapter->lora_adapter_name, "bad") ? 0 : -1;
}

EXPORT int rkllm_load_prompt_cache(LLMHandle handle, const char *path) {
  (void)handle, (void)path;
  return -1;
}

EXPORT int rkllm_release_prompt_cache(LLMHandle handle) {
  (void)handle;
  return -1;
}

#ifndef WITHOUT_ASYNC
EXPORT int rkllm_run_async(LLMHandle handle, RKLLMInput *input, RKLLMInferParam *infer, void *userdata) {
  return rkllm_run(handle, input, infer, userdata);
}
#endif
#ifdef WITH_CLEAR_KV_CACHE
EXPORT int rkllm_clear_kv_cache(LLMHandle handle) {
  (void)handle;
  return 0;
}
#endif
#if RELEASE >= 120
EXPORT int rkllm_set_chat_template(LLMHandle handle, const char *system, const char *prefix, const char *postfix) {
  (void)handle;
  note("template '%s' '%s' '%s'\n", system, prefix, postfix);
  return strstr(script, "notemplate") ? -1 : 0;
}
#endif
#if RELEASE == 120
EXPORT int rkllm_clear_kv_cache(LLMHandle handle, int keep_system_prompt) {
  (void)handle, (void)keep_system_prompt;
  return 0;
}
#elif RELEASE >= 123
EXPORT int rkllm_clear_kv_cache(LLMHandle handle, int keep_system_prompt, int *start_pos, int *end_pos) {
  (void)handle, (void)keep_system_prompt, (void)start_pos, (void)end_pos;
  return 0;
}

EXPORT int rkllm_get_kv_cache_size(LLMHandle handle, int *cache_sizes) {
  (void)handle;
  cache_sizes[0] = 0;
  return 0;
}

EXPORT int rkllm_set_function_tools(LLMHandle handle, const char *system, const char *tools, const char *response) {
  (void)handle, (void)system, (void)tools, (void)response;
  return -1;
}

EXPORT int rkllm_set_cross_attn_params(LLMHandle handle, RKLLMCrossAttnParam *params) {
  (void)handle, (void)params;
  return -1;
}
#endif
