// Normalisation form C: decompose, order the marks, compose again.
#include <algorithm>
#include <cstdint>
#include <iterator>
#include <tuple>
#include <vector>

#include "unicode.h"

namespace rksim::unicode {
namespace {

struct Range {
  uint32_t first, last;
  uint8_t value;
};
struct Decomposition {
  uint32_t cp;
  uint16_t at, length;  // in kDecomposed
};
struct Composition {
  uint32_t first, second, composed;
};

#define RKSIM_NFC_TABLES
#include "unicode_tables.inc"
#undef RKSIM_NFC_TABLES

// Hangul's syllables are composed by arithmetic.
constexpr uint32_t kSyllables = 0xAC00, kLeads = 0x1100, kVowels = 0x1161, kTails = 0x11A7;
constexpr uint32_t kLeadCount = 19, kVowelCount = 21, kTailCount = 28;
constexpr uint32_t kFirstAffected = 0x300;  // below it, every text is in form C

struct Mark {
  uint32_t cp;
  uint8_t combining;
};

uint8_t combining_class(uint32_t cp) {
  if (cp < kFirstAffected) return 0;
  auto after = std::upper_bound(std::begin(kClasses), std::end(kClasses), cp,
                                [](uint32_t c, const Range& r) { return c < r.first; });
  return after != std::begin(kClasses) && cp <= std::prev(after)->last ? std::prev(after)->value : 0;
}

void decompose(uint32_t cp, std::vector<Mark>& out) {
  if (uint32_t s = cp - kSyllables; cp >= kSyllables && s < kLeadCount * kVowelCount * kTailCount) {
    out.push_back({kLeads + s / (kVowelCount * kTailCount), 0});
    out.push_back({kVowels + s / kTailCount % kVowelCount, 0});
    if (s % kTailCount) out.push_back({kTails + s % kTailCount, 0});
    return;
  }
  auto found = std::lower_bound(std::begin(kDecompositions), std::end(kDecompositions), cp,
                                [](const Decomposition& d, uint32_t c) { return d.cp < c; });
  if (found == std::end(kDecompositions) || found->cp != cp) return out.push_back({cp, combining_class(cp)});
  for (uint32_t i = 0; i < found->length; i++) {
    uint32_t part = kDecomposed[found->at + i];
    out.push_back({part, combining_class(part)});
  }
}

void order(std::vector<Mark>& chars) {
  for (auto at = chars.begin(); at != chars.end();) {
    if (!at->combining) {
      ++at;
      continue;
    }
    auto end = std::find_if(at, chars.end(), [](const Mark& m) { return !m.combining; });
    std::stable_sort(at, end, [](const Mark& a, const Mark& b) { return a.combining < b.combining; });
    at = end;
  }
}

// 0: the two do not compose.
uint32_t composed(uint32_t a, uint32_t b) {
  if (a - kLeads < kLeadCount && b - kVowels < kVowelCount)
    return kSyllables + ((a - kLeads) * kVowelCount + b - kVowels) * kTailCount;
  if (uint32_t s = a - kSyllables;
      s < kLeadCount * kVowelCount * kTailCount && s % kTailCount == 0 && b - kTails - 1 < kTailCount - 1)
    return a + b - kTails;
  auto found = std::lower_bound(std::begin(kCompositions), std::end(kCompositions), std::tie(a, b),
                                [](const Composition& c, const std::tuple<const uint32_t&, const uint32_t&>& pair) {
                                  return std::tie(c.first, c.second) < pair;
                                });
  return found != std::end(kCompositions) && found->first == a && found->second == b ? found->composed : 0;
}

void compose(std::vector<Mark>& chars) {
  constexpr size_t kNone = SIZE_MAX;
  size_t starter = kNone, size = 0;
  for (Mark c : chars) {
    // A mark reaches its starter unless one of its own class or a higher one stands between.
    bool reaches = starter != kNone && (starter + 1 == size || chars[size - 1].combining < c.combining);
    if (uint32_t whole = reaches ? composed(chars[starter].cp, c.cp) : 0) {
      chars[starter].cp = whole;
      continue;
    }
    if (!c.combining) starter = size;
    chars[size++] = c;
  }
  chars.resize(size);
}

}  // namespace

std::string_view nfc(std::string_view text, std::string& buffer) {
  // U+0300 is the first whose UTF-8 begins with 0xCC or more.
  auto affected = [](char c) { return static_cast<uint8_t>(c) >= 0xCC; };
  if (std::none_of(text.begin(), text.end(), affected)) return text;
  std::vector<Mark> chars;
  chars.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    Decoded c = decode(text, at);
    decompose(c.cp, chars);
    at += c.length;
  }
  order(chars);
  compose(chars);
  buffer.clear();
  for (const Mark& c : chars) append(buffer, c.cp);
  return buffer;
}

}  // namespace rksim::unicode
