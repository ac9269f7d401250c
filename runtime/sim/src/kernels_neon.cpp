// NEON with dot products (ARMv8.2; every RK3588 has them): four rows' quads a vector, signed by signed.
#include "kernels.h"

#if defined(__aarch64__)
#include <arm_neon.h>

namespace rksim {
extern const Kernels kNeonKernels;

namespace {
#include "float_kernels.inc"

typedef float Floats __attribute__((vector_size(16)));
typedef int32_t Ints __attribute__((vector_size(16)));
constexpr int VECTORS = 4;
constexpr bool UNSIGNED = false;
constexpr int BIG_BLOCKS = 1, BIG_TOKENS = 4;

template <int R, int T>
INLINE void tile(const uint8_t* w, int64_t block_stride, const int8_t* x, int64_t tile_stride, int64_t quads,
                 const int32_t start[T], int32_t (&acc)[R][T][kRows]) {
  constexpr int V = 4 * R;  // vectors of 4 rows
  int32x4_t sum[V][T];
#pragma GCC unroll 8
  for (int v = 0; v < V; v++)
#pragma GCC unroll 8
    for (int t = 0; t < T; t++) sum[v][t] = vdupq_n_s32(start[t]);
  for (int64_t q = 0; q < quads; q++) {
    int8x16_t rows[V];
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) rows[v] = vreinterpretq_s8_u8(vld1q_u8(w + v / 4 * block_stride + q * 64 + v % 4 * 16));
#pragma GCC unroll 4
    for (int t = 0; t < T; t++) {
      int32_t four;
      __builtin_memcpy(&four, x + t / kTile * tile_stride + (q * kTile + t % kTile) * kQuad, 4);
      const int8x16_t token = vreinterpretq_s8_s32(vdupq_n_s32(four));
#pragma GCC unroll 8
      for (int v = 0; v < V; v++) sum[v][t] = vdotq_s32(sum[v][t], rows[v], token);
    }
  }
#pragma GCC unroll 8
  for (int v = 0; v < V; v++)
#pragma GCC unroll 8
    for (int t = 0; t < T; t++) vst1q_s32(&acc[v / 4][t][v % 4 * 4], sum[v][t]);
}

// Two sums a vector, of even and odd quads: a sum waits four cycles for itself, and two can begin in each.
template <int R>
INLINE void one_token(const uint8_t* w, int64_t block_stride, const int8_t* x, int64_t quads, int32_t start,
                      Ints (&acc)[R][VECTORS]) {
  constexpr int V = R * VECTORS;
  int32x4_t sum[2][V];
#pragma GCC unroll 8
  for (int v = 0; v < V; v++) sum[0][v] = vdupq_n_s32(start), sum[1][v] = vdupq_n_s32(0);
  auto add_quad = [&](int32x4_t(&to)[V], int64_t q) {
    int32_t four;
    __builtin_memcpy(&four, x + q * kQuad, 4);
    const int8x16_t token = vreinterpretq_s8_s32(vdupq_n_s32(four));
#pragma GCC unroll 8
    for (int v = 0; v < V; v++) {
      const uint8_t* rows = w + v / VECTORS * block_stride + q * 64 + v % VECTORS * 16;
      to[v] = vdotq_s32(to[v], vreinterpretq_s8_u8(vld1q_u8(rows)), token);
    }
  };
  int64_t q = 0;
  for (; q + 2 <= quads; q += 2) {
    add_quad(sum[0], q);
    add_quad(sum[1], q + 1);
  }
  if (q < quads) add_quad(sum[0], q);
#pragma GCC unroll 8
  for (int v = 0; v < V; v++) {
    const int32x4_t all = vaddq_s32(sum[0][v], sum[1][v]);
    __builtin_memcpy(&acc[v / VECTORS][v % VECTORS], &all, sizeof all);
  }
}

#include "tile_driver.inc"
}  // namespace

constexpr Kernels kNeonKernels = [] {
  Kernels k = with_float_kernels({});
  k.name = "neon";
  k.flip = 0;
  k.linear_i8 = linear_i8;
  k.accumulate_i8 = accumulate_i8;
  return k;
}();

}  // namespace rksim
#endif
