// The converter's arithmetic. The quantiser makes int8 and scales of rows of f32, f16 or bf16, bit for bit as
// rk3588.quant.quantise does.
//
// The loops are plain, written so that the compiler turns them into vectors; on x86 they are compiled twice, since
// the library itself is built for any x86-64.
#include <cfloat>
#include <cstdint>
#include <cstring>

#include "cpu_x86.h"
#include "rksim.h"

namespace {

#define RKSIM_INLINE __attribute__((always_inline)) inline

RKSIM_INLINE float as_float(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, 4);
  return value;
}
RKSIM_INLINE uint32_t as_bits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, 4);
  return bits;
}

// Each source type: its integer, the bits without the sign, the first of those that is not finite, and its value.
struct F32 {
  using Int = int32_t;
  static constexpr Int kMagnitude = 0x7FFFFFFF, kInfinity = 0x7F800000;
  static RKSIM_INLINE float value(Int bits) { return as_float(static_cast<uint32_t>(bits)); }
};
struct F16 {
  using Int = int16_t;
  static constexpr Int kMagnitude = 0x7FFF, kInfinity = 0x7C00;
  // The exponent moves by 112; as a multiplication that is exact for numbers below the normal ones too.
  static RKSIM_INLINE float value(Int bits) {
    const uint32_t h = static_cast<uint16_t>(bits);
    const float magnitude = as_float((h & 0x7FFF) << 13) * as_float(0x77800000);
    return as_float(as_bits(magnitude) | (h & 0x8000) << 16);
  }
};
struct BF16 {
  using Int = int16_t;
  static constexpr Int kMagnitude = 0x7FFF, kInfinity = 0x7F80;
  static RKSIM_INLINE float value(Int bits) {
    return as_float(static_cast<uint32_t>(static_cast<uint16_t>(bits)) << 16);
  }
};

// One group of n values. False: one of them is not finite, and nothing is written.
template <class T>
RKSIM_INLINE bool quantize_group(const typename T::Int* x, int64_t n, int8_t* q, float* scale_out) {
  typename T::Int largest = 0;
  for (int64_t i = 0; i < n; i++) {
    const auto magnitude = static_cast<typename T::Int>(x[i] & T::kMagnitude);
    largest = magnitude > largest ? magnitude : largest;
  }
  if (largest >= T::kInfinity) return false;
  float scale = T::value(largest) / 127.0f;
  if (scale < FLT_MIN) {  // float32 has lost precision there, and the quotients with it
    *scale_out = 0;
    std::memset(q, 0, static_cast<size_t>(n));
    return true;
  }
  *scale_out = scale;
  // Adding 1.5 * 2^23 rounds to an integer, half to even, which is then the low byte. No quotient exceeds 127 by
  // more than its last bit, so there is nothing to clip.
  for (int64_t i = 0; i < n; i++) q[i] = static_cast<int8_t>(as_bits(T::value(x[i]) / scale + 12582912.0f));
  return true;
}

template <class T>
RKSIM_INLINE int64_t quantize_rows(const void* src, int64_t rows, int64_t k, int64_t group, int8_t* q, float* scales) {
  const auto* x = static_cast<const typename T::Int*>(src);
  for (int64_t row = 0; row < rows; row++)
    for (int64_t start = 0; start < k; start += group) {
      const int64_t n = k - start < group ? k - start : group, at = row * k + start;
      if (quantize_group<T>(x + at, n, q + at, scales++)) continue;
      for (int64_t i = at;; i++)
        if ((x[i] & T::kMagnitude) >= T::kInfinity) return i + 1;
    }
  return 0;
}

RKSIM_INLINE int64_t quantize(const void* src, int type, int64_t rows, int64_t k, int64_t group, int8_t* q,
                              float* scales) {
  switch (type) {
    case RKSIM_F32: return quantize_rows<F32>(src, rows, k, group, q, scales);
    case RKSIM_F16: return quantize_rows<F16>(src, rows, k, group, q, scales);
    case RKSIM_BF16: return quantize_rows<BF16>(src, rows, k, group, q, scales);
    default: return -1;
  }
}

// The nearest float16, half to even. Only below 2^-14, where float16 is no longer normal, is there anything to round:
// adding 0.5 does it, whose last bit in float32 is float16's smallest number.
RKSIM_INLINE int bf16_to_f16(const uint16_t* src, int64_t n, uint16_t* dst) {
  constexpr uint16_t kNormal = 0x3880, kTooLarge = 0x4780;  // 2^-14, and 65536: the first that becomes infinite
  uint16_t largest = 0;
  for (int64_t i = 0; i < n; i++) {
    const auto magnitude = static_cast<uint16_t>(src[i] & 0x7FFF);
    largest = magnitude > largest ? magnitude : largest;
    const uint32_t bits = static_cast<uint32_t>(magnitude) << 16;
    const uint32_t normal = (bits >> 13) - (112 << 10), small = as_bits(as_float(bits) + 0.5f) - as_bits(0.5f);
    const uint32_t is_small = -static_cast<uint32_t>(magnitude < kNormal);  // a mask: a branch would keep out vectors
    dst[i] = static_cast<uint16_t>((small & is_small) | (normal & ~is_small) | (src[i] & 0x8000u));
  }
  return largest >= kTooLarge;
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) int bf16_to_f16_avx2(const uint16_t* src, int64_t n, uint16_t* dst) {
  return bf16_to_f16(src, n, dst);
}

__attribute__((target("avx2"))) int64_t quantize_avx2(const void* src, int type, int64_t rows, int64_t k, int64_t group,
                                                      int8_t* q, float* scales) {
  return quantize(src, type, rows, k, group, q, scales);
}
#endif

}  // namespace

int64_t rksim_quantize(const void* src, int src_type, int64_t rows, int64_t k, int64_t group, int8_t* q,
                       float* scales) {
  if (rows < 0 || k <= 0 || group < 0) return -1;
  if (group == 0) group = k;
#if defined(__x86_64__)
  static const bool avx2 = rksim::has_avx2();
  if (avx2) return quantize_avx2(src, src_type, rows, k, group, q, scales);
#endif
  return quantize(src, src_type, rows, k, group, q, scales);
}

int rksim_bf16_to_f16(const uint16_t* src, int64_t n, uint16_t* dst) {
#if defined(__x86_64__)
  static const bool avx2 = rksim::has_avx2();
  if (avx2) return bf16_to_f16_avx2(src, n, dst);
#endif
  return bf16_to_f16(src, n, dst);
}
