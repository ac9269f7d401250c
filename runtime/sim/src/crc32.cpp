// CRC-32 as zlib computes it: by carry-less products (x86-64) or the processor's own instruction (aarch64) where it
// has them, which is ten times as fast, else and for what is left over sixteen bytes a step ("slicing by 16").
#include <array>
#include <cstring>

#include "gguf.h"
#include "rksim.h"
#if defined(__x86_64__)
#include <immintrin.h>

#include "cpu_x86.h"
#elif defined(__aarch64__)
#include <arm_acle.h>
#include <asm/hwcap.h>
#include <sys/auxv.h>
#endif

namespace rksim {
namespace {

using Tables = std::array<std::array<uint32_t, 256>, 16>;

Tables make_tables() {
  Tables t{};
  for (uint32_t i = 0; i < 256; i++) {
    uint32_t c = i;
    for (int bit = 0; bit < 8; bit++) c = (c >> 1) ^ (c & 1 ? 0xEDB88320u : 0);
    t[0][i] = c;
  }
  for (size_t s = 1; s < 16; s++)
    for (size_t i = 0; i < 256; i++) t[s][i] = (t[s - 1][i] >> 8) ^ t[0][t[s - 1][i] & 0xFF];
  return t;
}

// Here and below, `crc` is the register itself, without the inversion at either end.
uint32_t by_table(uint32_t crc, const uint8_t* data, size_t size) {
  static const Tables t = make_tables();
  for (; size >= 16; size -= 16, data += 16) {
    uint32_t w[4];
    std::memcpy(w, data, 16);
    w[0] ^= crc;
    crc = 0;
    for (size_t i = 0; i < 4; i++)
      for (size_t b = 0; b < 4; b++) crc ^= t[15 - 4 * i - b][(w[i] >> (8 * b)) & 0xFF];
  }
  while (size--) crc = (crc >> 8) ^ t[0][(crc ^ *data++) & 0xFF];
  return crc;
}

#if defined(__x86_64__)
#define RKSIM_CLMUL __attribute__((target("pclmul,sse4.1")))

// 16 bytes moved forward over the message, in which each half is multiplied by its power of x, onto the next 16.
RKSIM_CLMUL inline __m128i fold(__m128i x, __m128i powers, __m128i next) {
  const __m128i low = _mm_clmulepi64_si128(x, powers, 0x00), high = _mm_clmulepi64_si128(x, powers, 0x11);
  return _mm_xor_si128(_mm_xor_si128(low, high), next);
}

RKSIM_CLMUL inline __m128i load16(const uint8_t* data) {
  return _mm_loadu_si128(reinterpret_cast<const __m128i*>(data));
}

// Gopal et al., "Fast CRC Computation for Generic Polynomials Using PCLMULQDQ Instruction" (Intel, 2009): x^544 and
// x^480 modulo the polynomial move 16 bytes on by 64, x^160 and x^96 by 16; bits reversed, as zlib has them.
RKSIM_CLMUL uint32_t by_products(uint32_t crc, const uint8_t* data, size_t size) {
  if (size < 64) return by_table(crc, data, size);
  const __m128i by64 = _mm_set_epi64x(0x1C6E41596, 0x154442BD4), by16 = _mm_set_epi64x(0x0CCAA009E, 0x1751997D0);
  __m128i x[4];
  for (size_t i = 0; i < 4; i++) x[i] = load16(data + 16 * i);
  x[0] = _mm_xor_si128(x[0], _mm_cvtsi32_si128(static_cast<int>(crc)));
  for (data += 64, size -= 64; size >= 64; data += 64, size -= 64)
    for (size_t i = 0; i < 4; i++) x[i] = fold(x[i], by64, load16(data + 16 * i));
  for (size_t i = 1; i < 4; i++) x[i] = fold(x[i - 1], by16, x[i]);
  for (; size >= 16; data += 16, size -= 16) x[3] = fold(x[3], by16, load16(data));
  uint8_t rest[16];
  _mm_storeu_si128(reinterpret_cast<__m128i*>(rest), x[3]);
  return by_table(by_table(0, rest, 16), data, size);
}

bool has_fast() { return has_pclmul(); }
constexpr auto fast = by_products;
#elif defined(__aarch64__)
__attribute__((target("+crc"))) uint32_t by_instruction(uint32_t crc, const uint8_t* data, size_t size) {
  for (; size >= 8; size -= 8, data += 8) {
    uint64_t w;
    std::memcpy(&w, data, 8);
    crc = __crc32d(crc, w);
  }
  while (size--) crc = __crc32b(crc, *data++);
  return crc;
}

bool has_fast() { return getauxval(AT_HWCAP) & HWCAP_CRC32; }
constexpr auto fast = by_instruction;
#else
bool has_fast() { return false; }
constexpr auto fast = by_table;
#endif

}  // namespace

uint32_t crc32(uint32_t crc, const uint8_t* data, size_t size) {
  static const auto best = has_fast() ? fast : by_table;
  return ~best(~crc, data, size);
}

}  // namespace rksim

uint32_t rksim_crc32(uint32_t crc, const void* data, size_t size) {
  return rksim::crc32(crc, static_cast<const uint8_t*>(data), size);
}
