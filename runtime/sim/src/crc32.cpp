// CRC-32 as zlib computes it, sixteen bytes a step ("slicing by 16").
#include <array>
#include <cstring>

#include "gguf.h"

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

}  // namespace

uint32_t crc32(uint32_t crc, const uint8_t* data, size_t size) {
  static const Tables t = make_tables();
  crc = ~crc;
  for (; size >= 16; size -= 16, data += 16) {
    uint32_t w[4];
    std::memcpy(w, data, 16);
    w[0] ^= crc;
    crc = 0;
    for (size_t i = 0; i < 4; i++)
      for (size_t b = 0; b < 4; b++) crc ^= t[15 - 4 * i - b][(w[i] >> (8 * b)) & 0xFF];
  }
  while (size--) crc = (crc >> 8) ^ t[0][(crc ^ *data++) & 0xFF];
  return ~crc;
}

}  // namespace rksim
