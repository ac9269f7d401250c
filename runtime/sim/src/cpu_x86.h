// What this processor and its operating system can run, asked directly: __builtin_cpu_supports knows f16c only in newer
// compilers, and knows nothing at all in what zig links.
#pragma once
#if defined(__x86_64__)
#include <cpuid.h>

#include <cstdint>

namespace rksim {

// Whether the registers are saved whose bits XCR0 has: 6 for AVX, 0xE6 for AVX-512.
inline bool saves_registers(uint32_t wanted) {
  uint32_t a, b, c, d;
  if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE)) return false;
  __asm__("xgetbv" : "=a"(a), "=d"(d) : "c"(0));
  return (a & wanted) == wanted;
}

inline bool has_pclmul() {
  uint32_t a, b, c, d;
  return __get_cpuid(1, &a, &b, &c, &d) && c & bit_PCLMUL && c & bit_SSE4_1;
}

inline bool has_sha() {
  uint32_t a, b, c, d;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && b & bit_SHA && __get_cpuid(1, &a, &b, &c, &d) && c & bit_SSE4_1;
}

inline bool has_avx2() {
  uint32_t a, b, c, d;
  if (!saves_registers(0x06) || !__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_F16C)) return false;
  return __get_cpuid_count(7, 0, &a, &b, &c, &d) && b & bit_AVX2;
}

inline bool has_avx512vnni() {
  constexpr uint32_t kFoundation = bit_AVX512F | bit_AVX512BW | bit_AVX512VL | bit_AVX512DQ;
  uint32_t a, b, c, d;
  if (!has_avx2() || !saves_registers(0xE6) || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  return (b & kFoundation) == kFoundation && c & bit_AVX512VNNI;
}

}  // namespace rksim
#endif
