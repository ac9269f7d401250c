/* librksim: the simulated runtime's engine without the RKLLM ABI around it. For evaluation on the host, token
 * counts on the board, and tests. Every function that can fail returns -1 (or NULL) and leaves one sentence in
 * rksim_last_error(), which belongs to the calling thread. A model may be used by one thread at a time. */
#ifndef RKSIM_H
#define RKSIM_H

#include <stddef.h>
#include <stdint.h>

/* The libraries are compiled with everything hidden; what is declared here is not. */
#pragma GCC visibility push(default)
#ifdef __cplusplus
extern "C" {
#endif

typedef struct rksim_model rksim_model;

/* Tokenizer only: weights are neither needed nor read, and of the shape n_vocab alone is told, and context_length where
   the file has it. */
enum { RKSIM_OPEN_VOCAB_ONLY = 1 };
/* What shares an activation scale, whatever RKSIM_ACT_SCALE says: at most one of these. */
enum { RKSIM_OPEN_ACT_TOKEN = 2, RKSIM_OPEN_ACT_TILE64 = 4, RKSIM_OPEN_ACT_GROUP = 8 };
enum { RKSIM_ADD_BOS = 1, RKSIM_PARSE_SPECIAL = 2 }; /* tokenize */
enum { RKSIM_SKIP_SPECIAL = 1 };                     /* detokenize */
enum { RKSIM_F32 = 0, RKSIM_F16 = 1, RKSIM_BF16 = 2 };

typedef struct {
  int32_t n_vocab, n_layers, hidden, intermediate, n_heads, n_kv_heads, head_dim, context_length;
  int32_t bos_id, eos_id; /* -1: none */
  int32_t add_bos;
} rksim_info;

const char *rksim_version(void);
const char *rksim_last_error(void);
const char *rksim_kernel(void); /* scalar, avx2, avx512vnni or neon: as chosen, or by RKSIM_KERNEL */

/* n_threads 0: RKSIM_THREADS, else all cores this process may use. */
rksim_model *rksim_open(const char *path, int n_threads, int flags);
void rksim_close(rksim_model *model);
int rksim_get_info(const rksim_model *model, rksim_info *out);

/* Both return the number of ids (bytes) needed, and write at most `capacity` of them. */
int64_t rksim_tokenize(const rksim_model *model, const char *text, size_t length, int flags, int32_t *ids,
                       size_t capacity);
int64_t rksim_detokenize(const rksim_model *model, const int32_t *ids, size_t n, int flags, char *text,
                         size_t capacity);

/* A LoRA adapter (GGUF) over the model, for all that follows; NULL: none. */
int rksim_use_lora(rksim_model *model, const char *path, float scale);

/* Logits of every position, n x n_vocab, from an empty cache. chunk: tokens per prefill step (0: the default);
 * progress (NULL: nobody) is told after each step how many tokens are done. */
typedef void (*rksim_progress)(size_t done);
int rksim_logits(rksim_model *model, const int32_t *ids, size_t n, int chunk, float *out, rksim_progress progress);
/* The `count` likeliest next tokens, one after another, after ids; of tokens with the same logit the first. progress is
 * told after each how many there are. */
int rksim_greedy(rksim_model *model, const int32_t *ids, size_t n, size_t count, int32_t *out, rksim_progress progress);
/* The logits of the token after ids, n_vocab. ids come behind the first `kept` positions of the last call's sequence;
 * with 0 they begin one that may grow to `room` positions. Any other call on the model ends it. */
int rksim_next(rksim_model *model, const int32_t *ids, size_t n, size_t kept, size_t room, float *out);
/* What n tokens become before the first block: x is n x hidden. */
int rksim_embed(rksim_model *model, const int32_t *ids, size_t n, float *x);
/* One transformer block on n tokens at positions 0..n-1: x and y are n x hidden. */
int rksim_layer(rksim_model *model, int layer, const float *x, size_t n, float *y);
/* One linear layer by tensor name: x is n x K, y is n x N. */
int rksim_linear(rksim_model *model, const char *tensor, const float *x, size_t n, float *y);

/* int8 (rows, k) x int8 (tokens, k) -> int32 (tokens, rows), by the kernel called `kernel` (NULL: the chosen). */
int rksim_gemm_i8(const char *kernel, const int8_t *w, const int8_t *x, int64_t rows, int64_t k, int64_t tokens,
                  int32_t *acc);
/* Rows of f32/f16/bf16 to int8 and scales (rows x groups); group 0: the whole row. Returns 0, or 1 + the index of
 * the first value that is not finite, or -1. */
int64_t rksim_quantize(const void *src, int src_type, int64_t rows, int64_t k, int64_t group, int8_t *q, float *scales);
/* Returns 0, or 1 where a value is larger than float16 holds, infinite or not a number. */
int rksim_bf16_to_f16(const uint16_t *src, int64_t n, uint16_t *dst);
/* zlib's CRC-32, continued from `crc`; begin with 0. */
uint32_t rksim_crc32(uint32_t crc, const void *data, size_t size);
/* Compresses blocks of 64 bytes of n messages into their states, eight words each, side by side: about a third faster
 * than one after another. Padding is the caller's. Only where rksim_sha256_here() says 1: x86-64 with SHA. */
int rksim_sha256_here(void);
void rksim_sha256(int n, uint32_t *const *states, const uint8_t *const *data, const size_t *blocks);

#ifdef __cplusplus
}
#endif
#pragma GCC visibility pop
#endif
