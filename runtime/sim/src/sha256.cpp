// SHA-256 of several messages at once, with the SHA instructions of x86-64. Each waits for the one before it, so a
// single message leaves half the unit idle; the converter has as many messages as it writes files.
#include <cstdint>

#include "rksim.h"
#if defined(__x86_64__)
#include <immintrin.h>

#include "cpu_x86.h"

namespace {

// FIPS 180-4, 4.2.2: the cube roots of the first 64 primes.
alignas(16) constexpr uint32_t kConstants[64] = {
    0x428A2F98, 0x71374491, 0xB5C0FBCF, 0xE9B5DBA5, 0x3956C25B, 0x59F111F1, 0x923F82A4, 0xAB1C5ED5,
    0xD807AA98, 0x12835B01, 0x243185BE, 0x550C7DC3, 0x72BE5D74, 0x80DEB1FE, 0x9BDC06A7, 0xC19BF174,
    0xE49B69C1, 0xEFBE4786, 0x0FC19DC6, 0x240CA1CC, 0x2DE92C6F, 0x4A7484AA, 0x5CB0A9DC, 0x76F988DA,
    0x983E5152, 0xA831C66D, 0xB00327C8, 0xBF597FC7, 0xC6E00BF3, 0xD5A79147, 0x06CA6351, 0x14292967,
    0x27B70A85, 0x2E1B2138, 0x4D2C6DFC, 0x53380D13, 0x650A7354, 0x766A0ABB, 0x81C2C92E, 0x92722C85,
    0xA2BFE8A1, 0xA81A664B, 0xC24B8B70, 0xC76C51A3, 0xD192E819, 0xD6990624, 0xF40E3585, 0x106AA070,
    0x19A4C116, 0x1E376C08, 0x2748774C, 0x34B0BCB5, 0x391C0CB3, 0x4ED8AA4A, 0x5B9CCA4F, 0x682E6FF3,
    0x748F82EE, 0x78A5636F, 0x84C87814, 0x8CC70208, 0x90BEFFFA, 0xA4506CEB, 0xBEF9A3F7, 0xC67178F2};
constexpr int kMost = 3;  // at once: more do not fit into the registers

struct Stream {
  uint32_t* state;
  const uint8_t* data;
  size_t blocks;
};

#define RKSIM_SHA __attribute__((target("sha,sse4.1")))

// The instructions keep the eight words as (A B E F) and (C D G H), highest first.
RKSIM_SHA inline void load_state(const uint32_t* h, __m128i& abef, __m128i& cdgh) {
  abef = _mm_set_epi32(static_cast<int>(h[0]), static_cast<int>(h[1]), static_cast<int>(h[4]), static_cast<int>(h[5]));
  cdgh = _mm_set_epi32(static_cast<int>(h[2]), static_cast<int>(h[3]), static_cast<int>(h[6]), static_cast<int>(h[7]));
}

RKSIM_SHA inline void store_state(uint32_t* h, __m128i abef, __m128i cdgh) {
  alignas(16) uint32_t x[4], y[4];
  _mm_store_si128(reinterpret_cast<__m128i*>(x), abef);
  _mm_store_si128(reinterpret_cast<__m128i*>(y), cdgh);
  const uint32_t words[8] = {x[3], x[2], y[3], y[2], x[1], x[0], y[1], y[0]};
  for (int i = 0; i < 8; i++) h[i] = words[i];
}

// `blocks` blocks of each of N streams; the loops over N and over the rounds are to be unrolled.
template <int N>
RKSIM_SHA void compress(Stream* const* streams, size_t blocks) {
  const __m128i big_endian = _mm_set_epi64x(0x0C0D0E0F08090A0B, 0x0405060700010203);
  __m128i abef[N], cdgh[N];
  for (int s = 0; s < N; s++) load_state(streams[s]->state, abef[s], cdgh[s]);
  for (size_t block = 0; block < blocks; block++) {
    __m128i abef_before[N], cdgh_before[N], w[N][4];
    for (int s = 0; s < N; s++) {
      abef_before[s] = abef[s];
      cdgh_before[s] = cdgh[s];
      const auto* data = reinterpret_cast<const __m128i*>(streams[s]->data + 64 * block);
      for (int i = 0; i < 4; i++) w[s][i] = _mm_shuffle_epi8(_mm_loadu_si128(data + i), big_endian);
    }
#pragma GCC unroll 16
    for (int r = 0; r < 16; r++) {  // four rounds each
      const __m128i constants = _mm_load_si128(reinterpret_cast<const __m128i*>(kConstants + 4 * r));
#pragma GCC unroll 3
      for (int s = 0; s < N; s++) {
        __m128i &oldest = w[s][r & 3], newest = w[s][(r + 3) & 3];
        const __m128i sum = _mm_add_epi32(oldest, constants);
        cdgh[s] = _mm_sha256rnds2_epu32(cdgh[s], abef[s], sum);
        abef[s] = _mm_sha256rnds2_epu32(abef[s], cdgh[s], _mm_shuffle_epi32(sum, 0x0E));
        if (r >= 12) continue;
        const __m128i part = _mm_add_epi32(_mm_sha256msg1_epu32(oldest, w[s][(r + 1) & 3]),
                                           _mm_alignr_epi8(newest, w[s][(r + 2) & 3], 4));
        oldest = _mm_sha256msg2_epu32(part, newest);
      }
    }
    for (int s = 0; s < N; s++) {
      abef[s] = _mm_add_epi32(abef[s], abef_before[s]);
      cdgh[s] = _mm_add_epi32(cdgh[s], cdgh_before[s]);
    }
  }
  for (int s = 0; s < N; s++) store_state(streams[s]->state, abef[s], cdgh[s]);
}

}  // namespace

int rksim_sha256_here(void) { return rksim::has_sha(); }

void rksim_sha256(int n, uint32_t* const* states, const uint8_t* const* data, const size_t* blocks) {
  int next = 0, active = 0;
  Stream streams[kMost], *running[kMost];
  for (int i = 0; i < kMost; i++) running[i] = &streams[i];
  for (;;) {
    for (; active < kMost && next < n; next++)
      if (blocks[next]) *running[active++] = {states[next], data[next], blocks[next]};
    if (!active) return;
    size_t common = running[0]->blocks;
    for (int i = 1; i < active; i++) common = running[i]->blocks < common ? running[i]->blocks : common;
    if (active == 1) compress<1>(running, common);
    if (active == 2) compress<2>(running, common);
    if (active == 3) compress<3>(running, common);
    for (int i = active; i-- > 0;) {
      running[i]->data += 64 * common;
      running[i]->blocks -= common;
      if (running[i]->blocks) continue;
      Stream* done = running[i];
      running[i] = running[--active];
      running[active] = done;
    }
  }
}
#else
int rksim_sha256_here(void) { return 0; }
void rksim_sha256(int, uint32_t* const*, const uint8_t* const*, const size_t*) {}
#endif
