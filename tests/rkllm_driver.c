/* A C program over librkllmrt.so for test_rkllm.py: loads the library with dlopen, does what its arguments say
 * in their order, and prints what came back, one line each:
 *   ret CALL VALUE                              what a function returned
 *   cb RUN STATE TOKEN TEXT THREAD              one callback; TEXT in hex or NULL, THREAD main or other;
 *                                               TOKEN and TEXT are NULL when the whole result is
 *   hidden RUN EMBD_SIZE NUM_TOKENS VALUES      the floats of a hidden-state callback, in hex
 * Arguments are VERB or VERB:VALUE; see `verbs` below. */
#define _DEFAULT_SOURCE /* usleep */
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include "rkllm.h"

static struct {
  RKLLMParam (*createDefaultParam)(void);
  int (*init)(LLMHandle *, RKLLMParam *, LLMResultCallback);
  int (*load_lora)(LLMHandle, RKLLMLoraAdapter *);
  int (*load_prompt_cache)(LLMHandle, const char *);
  int (*release_prompt_cache)(LLMHandle);
  int (*destroy)(LLMHandle);
  int (*run)(LLMHandle, RKLLMInput *, RKLLMInferParam *, void *);
  int (*run_async)(LLMHandle, RKLLMInput *, RKLLMInferParam *, void *);
  int (*abort)(LLMHandle);
  int (*is_running)(LLMHandle);
} api;

static LLMHandle handle;
static RKLLMParam param;
static RKLLMInput input;
static RKLLMInferParam infer, *infer_given = &infer;
static RKLLMLoraParam lora;
static RKLLMLoraAdapter adapter = {"lora.gguf", "style", 1.0f};
static RKLLMPromptCacheParam cache = {1, NULL};
static pthread_t main_thread, helper;
static long run_number, calls_in_run;
static _Atomic long calls; /* callbacks of the run at hand */
static long act_at = -1, slow_us;
static _Atomic int alive; /* initialised, and not yet destroyed */
static const char *action;
static int idle; /* what is_running says of a handle that does nothing: releases differ */
static int without_callback;
static const char *model_path = "";

static void die(const char *what, const char *which) {
  fprintf(stderr, "driver: %s %s\n", what, which);
  exit(3);
}

static void load(const char *path) {
  void *library = dlopen(path, RTLD_NOW);
  if (!library) die("dlopen:", dlerror());
  struct {
    const char *name;
    void *slot;
  } all[] = {{"rkllm_createDefaultParam", &api.createDefaultParam},
             {"rkllm_init", &api.init},
             {"rkllm_load_lora", &api.load_lora},
             {"rkllm_load_prompt_cache", &api.load_prompt_cache},
             {"rkllm_release_prompt_cache", &api.release_prompt_cache},
             {"rkllm_destroy", &api.destroy},
             {"rkllm_run", &api.run},
             {"rkllm_run_async", &api.run_async},
             {"rkllm_abort", &api.abort},
             {"rkllm_is_running", &api.is_running}};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
    void *symbol = dlsym(library, all[i].name);
    if (!symbol) die("no symbol", all[i].name);
    memcpy(all[i].slot, &symbol, sizeof symbol);
  }
}

static void print_hex(const void *data, size_t size) {
  for (size_t i = 0; i < size; i++) printf("%02x", ((const unsigned char *)data)[i]);
}

static void ret(const char *call, int value) { printf("ret %s %d\n", call, value); }

static void act(const char *what);
static long child_offset; /* what a child's callbacks have their run's number raised by */

static void on_result(RKLLMResult *result, void *userdata, LLMCallState state) {
  flockfile(stdout);
  printf("cb %ld %d ", (long)(intptr_t)userdata + child_offset, state);
  if (result) printf("%d ", result->token_id);
  else printf("NULL ");
  const char *text = result ? result->text : NULL;
  if (text && *text) print_hex(text, strlen(text));
  else printf(text ? "-" : "NULL");
  printf(" %s\n", pthread_equal(pthread_self(), main_thread) ? "main" : "other");
  if (state == RKLLM_RUN_GET_LAST_HIDDEN_LAYER) {
    const RKLLMResultLastHiddenLayer *h = &result->last_hidden_layer;
    printf("hidden %ld %d %d ", (long)(intptr_t)userdata, h->embd_size, h->num_tokens);
    print_hex(h->hidden_states, sizeof(float) * (size_t)h->embd_size * (size_t)h->num_tokens);
    printf("\n");
  }
  funlockfile(stdout);
  if (calls_in_run++ == act_at) act(action);
  atomic_fetch_add(&calls, 1);
  if (slow_us) usleep((useconds_t)slow_us);
}

#include "rkllm_driver_process.h"

/* One call of the API, from wherever we are. */
static void act(const char *what) {
  void *userdata = (void *)(intptr_t)run_number;
  if (!strcmp(what, "run")) ret(what, api.run(handle, &input, infer_given, userdata));
  else if (!strcmp(what, "run_async")) ret(what, api.run_async(handle, &input, infer_given, userdata));
  else if (!strcmp(what, "abort")) ret(what, api.abort(handle));
  else if (!strcmp(what, "is_running")) ret(what, api.is_running(handle));
  else if (!strcmp(what, "destroy")) {
    int value = api.destroy(handle);
    if (value == 0) alive = 0;
    ret(what, value);
  } else if (!strcmp(what, "load_lora")) {
    ret(what, api.load_lora(handle, &adapter));
  } else if (!strcmp(what, "load_prompt_cache")) ret(what, api.load_prompt_cache(handle, cache.prompt_cache_path));
  else if (!strcmp(what, "release_prompt_cache")) ret(what, api.release_prompt_cache(handle));
  else if (!strcmp(what, "fork")) fork_here();
  else die("unknown call", what);
}

static void wait_calls(long n) {
  for (int i = 0; atomic_load(&calls) < n; i++) {
    if (i > 30000) die("waited too long for", "callbacks");
    usleep(1000);
  }
}

static void wait_idle(void) {
  for (int i = 0; api.is_running(handle) != idle; i++) {
    if (i > 30000) die("waited too long for", "the run to end");
    usleep(1000);
  }
}

static struct {
  long after;
  const char *what;
} task;

static void *help(void *unused) {
  wait_calls(task.after);
  act(task.what);
  return unused;
}

static void overwrite(const char *text) {
  if (text) memset((char *)(uintptr_t)text, '#', strlen(text));
}

/* Overwrites what init was given, as a garbage collector may, while it goes on. */
static int scribbling;

static void *scribble(void *unused) {
  usleep(100000);
  overwrite(param.model_path);
  overwrite(param.img_start);
  overwrite(param.img_content);
  overwrite(param.img_end);
  return unused;
}

static int init(char *path) {
  model_path = param.model_path = path;
  if (scribbling && pthread_create(&helper, NULL, scribble, NULL)) die("cannot start", "a thread");
  const int result = api.init(&handle, &param, without_callback ? NULL : on_result);
  if (scribbling) pthread_join(helper, NULL);
  alive = result == 0;
  if (alive) idle = api.is_running(handle);
  return result;
}

static void set(char *text) {
  char *value = strchr(text, '=');
  if (!value) die("set wants NAME=VALUE, not", text);
  *value++ = 0;
#define FIELD(name, read)     \
  if (!strcmp(text, #name)) { \
    param.name = read;        \
    return;                   \
  }
  FIELD(max_context_len, atoi(value))
  FIELD(max_new_tokens, atoi(value))
  FIELD(top_k, atoi(value))
  FIELD(top_p, strtof(value, NULL))
  FIELD(temperature, strtof(value, NULL))
  FIELD(repeat_penalty, strtof(value, NULL))
  FIELD(frequency_penalty, strtof(value, NULL))
  FIELD(presence_penalty, strtof(value, NULL))
  FIELD(mirostat, atoi(value))
  FIELD(skip_special_token, atoi(value) != 0)
  FIELD(is_async, atoi(value) != 0)
  FIELD(img_start, value)
  FIELD(img_content, value)
  FIELD(img_end, value)
#undef FIELD
  die("no such parameter:", text);
}

static void read_tokens(char *text) {
  static int32_t ids[8192];
  size_t n = 0;
  for (char *part = strtok(text, ","); part && n < 8192; part = strtok(NULL, ",")) ids[n++] = atoi(part);
  input.input_type = RKLLM_INPUT_TOKEN;
  input.token_input.input_ids = ids;
  input.token_input.n_tokens = n;
}

/* PATH,NAME,SCALE for load_lora; a part that is - is NULL. */
static void read_adapter(char *text) {
  char *name = strchr(text, ','), *scale = name ? strchr(name + 1, ',') : NULL;
  if (!scale) die("adapter wants PATH,NAME,SCALE, not", text);
  *name++ = *scale++ = 0;
  adapter.lora_adapter_path = strcmp(text, "-") ? text : NULL;
  adapter.lora_adapter_name = strcmp(name, "-") ? name : NULL;
  adapter.scale = strtof(scale, NULL);
}

/* COUNT,FILE: float32 values in a file. */
static float *read_floats(char *text) {
  static float values[1 << 16];
  char *path = strchr(text, ',');
  FILE *file = path ? fopen(path + 1, "rb") : NULL;
  if (!file || !fread(values, sizeof *values, 1 << 16, file)) die("cannot read", text);
  fclose(file);
  return values;
}

static void read_embeddings(char *text) {
  input.input_type = RKLLM_INPUT_EMBED;
  input.embed_input.embed = read_floats(text);
  input.embed_input.n_tokens = (size_t)atoi(text);
}

static void read_image(char *text) {
  input.input_type = RKLLM_INPUT_MULTIMODAL;
  input.multimodal_input.image_embed = read_floats(text);
  input.multimodal_input.n_image_tokens = (size_t)strtoull(text, NULL, 10);
}

static void print_defaults(void) {
  printf("defaults");
  printf(" %d %d %d %g %g %g %g %g %d %g %g %d %d\n", param.max_context_len, param.max_new_tokens, param.top_k,
         (double)param.top_p, (double)param.temperature, (double)param.repeat_penalty, (double)param.frequency_penalty,
         (double)param.presence_penalty, param.mirostat, (double)param.mirostat_tau, (double)param.mirostat_eta,
         param.skip_special_token, param.is_async);
}

static void call_with_nulls(void) {
  LLMHandle none = NULL;
  RKLLMParam no_path = param;
  no_path.model_path = NULL;
  param.model_path = model_path;
  ret("init-handle", api.init(NULL, &param, on_result));
  ret("init-param", api.init(&none, NULL, on_result));
  ret("init-path", api.init(&none, &no_path, on_result));
  ret("run-handle", api.run(NULL, &input, &infer, NULL));
  ret("run-input", api.run(handle, NULL, &infer, NULL));
  ret("run_async-input", api.run_async(handle, NULL, &infer, NULL));
  RKLLMInput empty = {0};
  for (int type = 0; type < 4; type++) {
    empty.input_type = (RKLLMInputType)type;
    ret("run-content", api.run(handle, &empty, &infer, NULL));
  }
  ret("load_lora-handle", api.load_lora(NULL, NULL));
  ret("load_lora-adapter", api.load_lora(handle, NULL));
  ret("load_prompt_cache-handle", api.load_prompt_cache(NULL, NULL));
  ret("release_prompt_cache-handle", api.release_prompt_cache(NULL));
  ret("destroy-handle", api.destroy(NULL));
  ret("abort-handle", api.abort(NULL));
}

static void start(const char *call) {
  run_number++;
  calls_in_run = 0;
  atomic_store(&calls, 0);
  act(call);
}

/* VERB:VALUE, most of them for the runs that follow. */
static void command(const char *verb, char *value) {
  if (!strcmp(verb, "set")) set(value);
  else if (!strcmp(verb, "init")) ret(verb, init(value));
  else if (!strcmp(verb, "prompt")) input.input_type = RKLLM_INPUT_PROMPT, input.prompt_input = value;
  else if (!strcmp(verb, "tokens")) read_tokens(value);
  else if (!strcmp(verb, "token_count")) input.token_input.n_tokens = (size_t)strtoull(value, NULL, 10);
  else if (!strcmp(verb, "embed")) read_embeddings(value);
  else if (!strcmp(verb, "image")) read_image(value);
  else if (!strcmp(verb, "image_prompt")) input.multimodal_input.prompt = value; /* after `image`; no value: NULL */
  else if (!strcmp(verb, "no_infer")) infer_given = NULL;
  else if (!strcmp(verb, "no_callback")) without_callback = 1;
  else if (!strcmp(verb, "scribble")) scribbling = 1;
  else if (!strcmp(verb, "signal_in")) signal_in(value);
  else if (!strcmp(verb, "storm")) storm(atol(value));
  else if (!strcmp(verb, "handled")) printf("ret handler %d\nret handled %d\n", handlers_result, handled);
  else if (!strcmp(verb, "input_type")) input.input_type = (RKLLMInputType)atoi(value);
  else if (!strcmp(verb, "mode")) infer.mode = (RKLLMInferMode)atoi(value);
  else if (!strcmp(verb, "lora")) lora.lora_adapter_name = value, infer.lora_params = &lora; /* no value: a NULL name */
  else if (!strcmp(verb, "no_lora")) infer.lora_params = NULL;
  else if (!strcmp(verb, "adapter")) read_adapter(value);
  else if (!strcmp(verb, "cache")) cache.prompt_cache_path = value; /* no value: NULL */
  else if (!strcmp(verb, "save_cache")) infer.prompt_cache_params = atoi(value) ? &cache : NULL;
  else if (!strcmp(verb, "slow")) slow_us = atol(value);    /* each callback takes so many microseconds */
  else if (!strcmp(verb, "at")) act_at = atol(value);       /* in this callback, counted from 0, ... */
  else if (!strcmp(verb, "do")) action = value;             /* ... make this call */
  else if (!strcmp(verb, "await")) wait_calls(atol(value)); /* until so many callbacks have come */
  else if (!strcmp(verb, "wait")) wait_idle();
  else if (!strcmp(verb, "after")) task.after = atol(value); /* another thread waits for so many callbacks, */
  else if (!strcmp(verb, "helper")) {
    task.what = value; /* ... then makes this call */
    if (pthread_create(&helper, NULL, help, NULL)) die("cannot start", "a thread");
  } else if (!strcmp(verb, "join")) pthread_join(helper, NULL);
  else if (!strcmp(verb, "defaults")) print_defaults();
  else if (!strcmp(verb, "nulls")) call_with_nulls();
  else if (!strcmp(verb, "leave")) exit(0);                        /* with everything as it is */
  else if (!strcmp(verb, "leave_at_once")) fflush(NULL), _exit(0); /* and with what lost threads had */
  else if (!strcmp(verb, "run") || !strcmp(verb, "run_async")) start(verb);
  else act(verb);
}

int main(int argc, char **argv) {
  if (argc < 2) die("usage: driver LIBRARY", "VERB[:VALUE]...");
  main_thread = pthread_self();
  setvbuf(stdout, NULL, _IOLBF, 0);
  load(argv[1]);
  param = api.createDefaultParam();
  for (int i = 2; i < argc; i++) {
    char *value = strchr(argv[i], ':');
    if (value) *value++ = 0;
    if (!strcmp(argv[i], "fork")) i = forked(argc, argv, i);
    else if (!strcmp(argv[i], "parent")) break; /* the child's end */
    else command(argv[i], value);
  }
  if (alive) api.destroy(handle);
  return 0;
}
