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
constexpr int BIG_BLOCKS = 2, BIG_TOKENS = 12, ONE_TOKEN_BLOCKS = 4;

template <int R, int T>
INLINE void tile(const uint8_t* w, int64_t block_stride, const int8_t* x, int64_t tile_stride, int64_t quads,
                 const int32_t start[T], int32_t (&acc)[R][T][kRows]) {
  constexpr int width = T == 1 ? 1 : int{kTile};
  __m512i sum[R][T];
#pragma GCC unroll 12
  for (int r = 0; r < R; r++)
#pragma GCC unroll 12
    for (int t = 0; t < T; t++) sum[r][t] = _mm512_set1_epi32(start[t]);
  for (int64_t q = 0; q < quads; q++) {
    __m512i rows[R];
#pragma GCC unroll 4
    for (int r = 0; r < R; r++) {
      const uint8_t* p = w + r * block_stride + q * 64;
      if (T == 1) _mm_prefetch(reinterpret_cast<const char*>(p + 1024), _MM_HINT_T0);
      rows[r] = _mm512_loadu_si512(p);
    }
#pragma GCC unroll 12
    for (int t = 0; t < T; t++) {
      int32_t four;
      __builtin_memcpy(&four, x + t / kTile * tile_stride + (q * width + t % kTile) * kQuad, 4);
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
