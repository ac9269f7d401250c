// AVX2: |x| by w with x's sign as unsigned-by-signed bytes. |x|, |w| <= 127, so pairs never saturate int16.
#include "kernels.h"

#if defined(__AVX2__)
#include <immintrin.h>

namespace rksim {
extern const Kernels kAvx2Kernels;

namespace {
#include "float_kernels.inc"

typedef float Floats __attribute__((vector_size(32)));
typedef int32_t Ints __attribute__((vector_size(32)));
constexpr int VECTORS = 2;
constexpr bool UNSIGNED = false;
constexpr int BIG_BLOCKS = 1, BIG_TOKENS = 4;

INLINE __m256i load_rows(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }

INLINE __m256i add_quad(__m256i sum, __m256i rows, __m256i token, __m256i magnitude) {
  const __m256i pairs = _mm256_maddubs_epi16(magnitude, _mm256_sign_epi8(rows, token));
  return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}

template <int R, int T>
INLINE void tile(const uint8_t* w, int64_t block_stride, const int8_t* x, int64_t tile_stride, int64_t quads,
                 const int32_t start[T], int32_t (&acc)[R][T][kRows]) {
  constexpr int V = 2 * R;  // vectors of 8 rows
  __m256i sum[V][T];
#pragma GCC unroll 16
  for (int v = 0; v < V; v++)
#pragma GCC unroll 16
    for (int t = 0; t < T; t++) sum[v][t] = _mm256_set1_epi32(start[t]);
  for (int64_t q = 0; q < quads; q++) {
    __m256i rows[V];
#pragma GCC unroll 16
    for (int v = 0; v < V; v++) rows[v] = load_rows(w + v / 2 * block_stride + q * 64 + v % 2 * 32);
#pragma GCC unroll 16
    for (int t = 0; t < T; t++) {
      int32_t four;
      __builtin_memcpy(&four, x + t / kTile * tile_stride + (q * kTile + t % kTile) * kQuad, 4);
      const __m256i token = _mm256_set1_epi32(four), magnitude = _mm256_abs_epi8(token);
#pragma GCC unroll 16
      for (int v = 0; v < V; v++) sum[v][t] = add_quad(sum[v][t], rows[v], token, magnitude);
    }
  }
#pragma GCC unroll 16
  for (int v = 0; v < V; v++)
#pragma GCC unroll 16
    for (int t = 0; t < T; t++) _mm256_store_si256(reinterpret_cast<__m256i*>(&acc[v / 2][t][v % 2 * 8]), sum[v][t]);
}

template <int R>
INLINE void one_token(const uint8_t* w, int64_t block_stride, const int8_t* x, int64_t quads, int32_t start,
                      Ints (&acc)[R][VECTORS]) {
  __m256i sum[R][2];
#pragma GCC unroll 2
  for (int r = 0; r < R; r++) sum[r][0] = sum[r][1] = _mm256_set1_epi32(start);
#pragma GCC unroll 4
  for (int64_t q = 0; q < quads; q++) {
    int32_t four;
    __builtin_memcpy(&four, x + q * kQuad, 4);
    const __m256i token = _mm256_set1_epi32(four), magnitude = _mm256_abs_epi8(token);
#pragma GCC unroll 4
    for (int v = 0; v < 2 * R; v++)
      sum[v / 2][v % 2] =
          add_quad(sum[v / 2][v % 2], load_rows(w + v / 2 * block_stride + q * 64 + v % 2 * 32), token, magnitude);
  }
  __builtin_memcpy(acc, sum, sizeof acc);
}

#include "tile_driver.inc"
}  // namespace

constexpr Kernels kAvx2Kernels = [] {
  Kernels k = with_float_kernels({});
  k.name = "avx2";
  k.flip = 0;
  k.linear_i8 = linear_i8;
  k.accumulate_i8 = accumulate_i8;
  return k;
}();

}  // namespace rksim
#endif
