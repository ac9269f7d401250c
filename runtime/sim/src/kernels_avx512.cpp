// AVX-512 with VNNI: weights as unsigned bytes (q + 128), so that one instruction multiplies and adds four pairs; the
// sums start at -128 times the sum of the token's bytes, which takes the offset out again.
#include "kernels.h"

#if defined(__AVX512VNNI__) && defined(__AVX512BW__)
#include <immintrin.h>

namespace rksim {
extern const Kernels kAvx512Kernels;

namespace {
#include "float_kernels.inc"

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
constexpr int VECTORS = 1;
constexpr bool UNSIGNED = true;
constexpr int BIG_BLOCKS = 2, BIG_TOKENS = 12;

template <int R, int T>
INLINE void tile(const uint8_t* w, int64_t block_stride, const int8_t* x, int64_t tile_stride, int64_t quads,
                 const int32_t start[T], int32_t (&acc)[R][T][kRows]) {
  __m512i sum[R][T];
#pragma GCC unroll 12
  for (int r = 0; r < R; r++)
#pragma GCC unroll 12
    for (int t = 0; t < T; t++) sum[r][t] = _mm512_set1_epi32(start[t]);
  for (int64_t q = 0; q < quads; q++) {
    __m512i rows[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) rows[r] = _mm512_loadu_si512(w + r * block_stride + q * 64);
#pragma GCC unroll 12
    for (int t = 0; t < T; t++) {
      int32_t four;
      __builtin_memcpy(&four, x + t / kTile * tile_stride + (q * kTile + t % kTile) * kQuad, 4);
      const __m512i token = _mm512_set1_epi32(four);
#pragma GCC unroll 4
      for (int r = 0; r < R; r++) sum[r][t] = _mm512_dpbusd_epi32(sum[r][t], rows[r], token);
    }
  }
#pragma GCC unroll 12
  for (int r = 0; r < R; r++)
#pragma GCC unroll 12
    for (int t = 0; t < T; t++) _mm512_store_si512(acc[r][t], sum[r][t]);
}

INLINE __m512i add_quad(__m512i sum, const uint8_t* w, const int8_t* x, int64_t q) {
  int32_t four;
  __builtin_memcpy(&four, x + q * kQuad, 4);
  return _mm512_dpbusd_epi32(sum, _mm512_loadu_si512(w + q * 64), _mm512_set1_epi32(four));
}

// Four sums a block, each of every fourth quad: one alone would wait for itself, and not for the memory.
template <int R>
INLINE void one_token(const uint8_t* w, int64_t block_stride, const int8_t* x, int64_t quads, int32_t start,
                      Ints (&acc)[R][VECTORS]) {
  __m512i sum[R][4];
#pragma GCC unroll 2
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) sum[r][i] = _mm512_set1_epi32(i ? 0 : start);
  int64_t q = 0;
  for (; q + 4 <= quads; q += 4)
#pragma GCC unroll 2
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
      for (int i = 0; i < 4; i++) sum[r][i] = add_quad(sum[r][i], w + r * block_stride, x, q + i);
  for (; q < quads; q++)
#pragma GCC unroll 2
    for (int r = 0; r < R; r++) sum[r][0] = add_quad(sum[r][0], w + r * block_stride, x, q);
#pragma GCC unroll 2
  for (int r = 0; r < R; r++) {
    const __m512i all =
        _mm512_add_epi32(_mm512_add_epi32(sum[r][0], sum[r][1]), _mm512_add_epi32(sum[r][2], sum[r][3]));
    __builtin_memcpy(acc[r], &all, sizeof acc[r]);
  }
}

#include "tile_driver.inc"
}  // namespace

constexpr Kernels kAvx512Kernels = [] {
  Kernels k = with_float_kernels({});
  k.name = "avx512vnni";
  k.flip = 0x80;
  k.linear_i8 = linear_i8;
  k.accumulate_i8 = accumulate_i8;
  return k;
}();

}  // namespace rksim
#endif
