#include "unicode.h"

#include <algorithm>
#include <array>
#include <iterator>

#include "tokenizer.h"

namespace rksim::unicode {
namespace {

struct Range {
  uint32_t first, last;
  uint8_t value;
};

#define RKSIM_PROPERTY_TABLES
#include "unicode_tables.inc"
#undef RKSIM_PROPERTY_TABLES

constexpr uint32_t kReplacement = 0xFFFD;

std::array<uint8_t, 0x10000> expanded() {
  std::array<uint8_t, 0x10000> table{};
  for (const Range& r : kProperties)
    for (uint32_t cp = r.first; cp <= r.last && cp < table.size(); cp++) table[cp] = r.value;
  return table;
}

}  // namespace

uint8_t properties(uint32_t cp) {
  static const auto table = expanded();
  if (cp < table.size()) return table[cp];
  auto after = std::upper_bound(std::begin(kProperties), std::end(kProperties), cp,
                                [](uint32_t c, const Range& r) { return c < r.first; });
  return after != std::begin(kProperties) && cp <= std::prev(after)->last ? std::prev(after)->value : 0;
}

Decoded decode(std::string_view text, size_t at) {
  auto byte = [&](size_t i) { return static_cast<uint8_t>(text[i]); };
  uint32_t lead = byte(at);
  if (lead < 0x80) return {lead, 1, true, false};
  uint32_t needed = lead < 0xC2 ? 0 : lead < 0xE0 ? 2 : lead < 0xF0 ? 3 : lead < 0xF5 ? 4 : 0;
  if (!needed) return {kReplacement, 1, false, false};
  uint32_t cp = lead & (0x7Fu >> needed);
  // The second byte's range keeps out overlong forms, surrogates and what lies beyond U+10FFFF.
  uint8_t low = lead == 0xE0 ? 0xA0 : lead == 0xF0 ? 0x90 : 0x80;
  uint8_t high = lead == 0xED ? 0x9F : lead == 0xF4 ? 0x8F : 0xBF;
  for (uint32_t i = 1; i < needed; i++, low = 0x80, high = 0xBF) {
    if (at + i == text.size()) return {kReplacement, i, false, true};
    if (byte(at + i) < low || byte(at + i) > high) return {kReplacement, i, false, false};
    cp = cp << 6 | (byte(at + i) & 0x3F);
  }
  return {cp, needed, true, false};
}

size_t after_spaces(std::string_view text, size_t at) {
  while (at < text.size()) {
    const Decoded c = decode(text, at);
    if (!(properties(c.cp) & kSpace)) break;
    at += c.length;
  }
  return at;
}

size_t before_spaces(std::string_view text, size_t end) {
  while (end > 0) {
    size_t begin = end - 1;
    while (begin > 0 && (text[begin] & 0xC0) == 0x80) begin--;
    if (!(properties(decode(text, begin).cp) & kSpace)) break;
    end = begin;
  }
  return end;
}

void append(std::string& text, uint32_t cp) {
  auto put = [&](uint32_t byte) { text.push_back(static_cast<char>(byte)); };
  if (cp < 0x80) return put(cp);
  if (cp < 0x800) {
    put(0xC0 | cp >> 6);
  } else {
    if (cp < 0x10000) {
      put(0xE0 | cp >> 12);
    } else {
      put(0xF0 | cp >> 18);
      put(0x80 | (cp >> 12 & 0x3F));
    }
    put(0x80 | (cp >> 6 & 0x3F));
  }
  put(0x80 | (cp & 0x3F));
}

std::string_view valid_utf8(std::string_view text, std::string& buffer) {
  size_t at = 0;
  for (; at < text.size();) {
    Decoded c = decode(text, at);
    if (!c.valid) break;
    at += c.length;
  }
  if (at == text.size()) return text;
  buffer.assign(text.substr(0, at));
  while (at < text.size()) {
    Decoded c = decode(text, at);
    append(buffer, c.cp);
    at += c.length;
  }
  return buffer;
}

}  // namespace rksim::unicode

namespace rksim {

size_t incomplete_utf8(std::string_view text) {
  for (size_t back = 1; back <= 3 && back <= text.size(); back++) {
    if (static_cast<uint8_t>(text[text.size() - back]) < 0xC0) continue;  // not where a character begins
    unicode::Decoded c = unicode::decode(text, text.size() - back);
    return c.cut_off && c.length == back ? back : 0;
  }
  return 0;
}

}  // namespace rksim
