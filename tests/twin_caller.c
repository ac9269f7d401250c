/* A short program as somebody writes it for one release of RKLLM: over that release's header alone (-DABI=111, 120, 123
 * or 131), C11 and C++17. It prints what the functions returned, and how many tokens it was given:
 *   caller LIBRARY MODEL filled|defaults|demo prompt|tokens
 * `filled` begins with zeros, `defaults` with the library's own, `demo` sets what Rockchip's demos set as well.
 * Structs lie on the stack, where a sanitiser sees what a library of another release does to them. */
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "rkllm.h"

/* Larger than the parameters of any release: a library writes its own as its defaults. */
typedef union {
  RKLLMParam param;
  char room[256];
} Room;

static int tokens;

static
#if ABI >= 123
    int
#else
    void
#endif
    on_result(RKLLMResult *result, void *userdata, LLMCallState state) {
  (void)userdata;
  if (result && state < RKLLM_RUN_FINISH) tokens++;
#if ABI >= 123
  return 0;
#endif
}

static struct {
  Room (*defaults)(void);
  __typeof__(&rkllm_init) init;
  __typeof__(&rkllm_run) run;
  __typeof__(&rkllm_destroy) destroy;
} api;

static void load(const char *path) {
  void *library = dlopen(path, RTLD_NOW);
  struct {
    const char *name;
    void *slot;
  } all[] = {{"rkllm_createDefaultParam", &api.defaults},
             {"rkllm_init", &api.init},
             {"rkllm_run", &api.run},
             {"rkllm_destroy", &api.destroy}};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
    void *symbol = library ? dlsym(library, all[i].name) : NULL;
    if (!symbol) exit(3);
    memcpy(all[i].slot, &symbol, sizeof symbol);
  }
}

static void set_as_demos_do(RKLLMParam *param) {
#if ABI < 131
  param->img_start = "<img>";
  param->img_end = "";
  param->img_content = "";
#endif
#if ABI >= 120
  param->n_keep = -1;
  param->extend_param.embed_flash = 1;
  param->extend_param.enabled_cpus_num = 4;
  param->extend_param.enabled_cpus_mask = CPU4 | CPU5 | CPU6 | CPU7;
#endif
#if ABI >= 123
  param->extend_param.n_batch = 1;
#endif
  (void)param;
}

static int begin(LLMHandle *handle, char *model, const char *way) {
  RKLLMParam param;
  memset(&param, 0, sizeof param);
  if (!strcmp(way, "defaults")) {
    const Room room = api.defaults();
    param = room.param;
  }
  param.model_path = model;
  param.max_context_len = 128;
  param.max_new_tokens = 3;
  param.top_k = 1;
  param.top_p = 0.95f;
  param.temperature = 0.8f;
  param.repeat_penalty = 1.0f;
  param.mirostat_tau = 5.0f;
  param.mirostat_eta = 0.1f;
  param.skip_special_token = true;
  if (!strcmp(way, "demo")) set_as_demos_do(&param);
#if ABI >= 131
  RKLLMCallback callback;
  memset(&callback, 0, sizeof callback);
  callback.result_callback = on_result;
  return api.init(handle, &param, &callback);
#else
  return api.init(handle, &param, on_result);
#endif
}

static int answer(LLMHandle handle, const char *kind) {
  int32_t ids[] = {5, 6, 7};
  RKLLMInput input;
  memset(&input, 0, sizeof input);
  if (!strcmp(kind, "tokens")) {
    input.input_type = RKLLM_INPUT_TOKEN;
    input.token_input.input_ids = ids;
    input.token_input.n_tokens = 3;
  } else {
    input.input_type = RKLLM_INPUT_PROMPT;
    input.prompt_input = "Hello";
  }
#if ABI >= 123
  input.role = "user";
#endif
  RKLLMInferParam infer;
  memset(&infer, 0, sizeof infer);
  infer.mode = RKLLM_INFER_GENERATE;
  return api.run(handle, &input, &infer, NULL);
}

int main(int argc, char **argv) {
  if (argc != 5) return 2;
  load(argv[1]);
  LLMHandle handle = NULL;
  const int begun = begin(&handle, argv[2], argv[3]);
  printf("init %d\n", begun);
  if (begun != 0) return 0;
  printf("run %d\n", answer(handle, argv[4]));
  printf("tokens %d\n", tokens);
  return api.destroy(handle);
}
