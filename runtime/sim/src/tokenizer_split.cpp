#include "tokenizer_split.h"

#include <algorithm>

#include "unicode.h"

namespace rksim {
namespace {

using unicode::kLetter, unicode::kLower, unicode::kMark, unicode::kNumber, unicode::kNumeric, unicode::kSpace,
    unicode::kUpper;

// A text by characters. Positions below are indices of characters, `end` stands for the text's end.
struct Chars {
  explicit Chars(std::string_view text) {
    cp.reserve(text.size());
    for (size_t at = 0; at < text.size();) {
      unicode::Decoded c = unicode::decode(text, at);
      cp.push_back(c.cp);
      flags.push_back(unicode::properties(c.cp));
      offset.push_back(static_cast<uint32_t>(at));
      at += c.length;
    }
    offset.push_back(static_cast<uint32_t>(text.size()));
  }
  std::vector<uint32_t> cp, offset;
  std::vector<uint8_t> flags;

  bool is(size_t i, uint8_t flag) const { return flags[i] & flag; }
  bool is_other(size_t i) const { return !(flags[i] & (kLetter | kNumber | kSpace)); }
  // [\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}] and [\p{Ll}\p{Lm}\p{Lo}\p{M}]: letters without case and marks are both.
  bool is_upper(size_t i) const { return is(i, kMark) || (flags[i] & (kLetter | kLower)) == kLetter; }
  bool is_lower(size_t i) const { return is(i, kMark) || (flags[i] & (kLetter | kUpper)) == kLetter; }
  bool is_line_end(size_t i) const { return cp[i] == '\n' || cp[i] == '\r'; }
  size_t run(size_t i, size_t end, uint8_t flag) const {
    while (i < end && is(i, flag)) i++;
    return i;
  }
  size_t run_of_upper(size_t i, size_t end) const {
    while (i < end && is_upper(i)) i++;
    return i;
  }
  size_t run_of_others(size_t i, size_t end) const {
    while (i < end && is_other(i)) i++;
    return i;
  }
};

// 's 't 're 've 'm 'll 'd; whatever their case, long s too, when `fold`. Returns its end, or i.
size_t contraction(const Chars& c, size_t i, size_t end, bool fold) {
  auto letter = [&](size_t at) -> uint32_t {
    if (at >= end) return 0;
    if (!fold) return c.cp[at];
    return c.cp[at] == 0x17F ? 's' : c.cp[at] >= 'A' && c.cp[at] <= 'Z' ? c.cp[at] + 32 : c.cp[at];
  };
  if (c.cp[i] != '\'') return i;
  uint32_t a = letter(i + 1), b = letter(i + 2);
  if (a == 's' || a == 't' || a == 'm' || a == 'd') return i + 2;
  if (((a == 'r' || a == 'v') && b == 'e') || (a == 'l' && b == 'l')) return i + 3;
  return i;
}

// \s+(?!\S)|\s+ : all of a run at the text's end, else all but the last, which the next word may begin with.
size_t spaces(const Chars& c, size_t i, size_t end) {
  size_t stop = c.run(i, end, kSpace);
  return stop == end || stop == i + 1 ? stop : stop - 1;
}

// 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
size_t word_gpt2(const Chars& c, size_t i, size_t end) {
  if (size_t stop = contraction(c, i, end, false); stop > i) return stop;
  size_t first = c.cp[i] == ' ' && i + 1 < end ? i + 1 : i;
  if (c.is(first, kLetter)) return c.run(first, end, kLetter);
  if (c.is(first, kNumber)) return c.run(first, end, kNumber);
  if (c.is_other(first)) return c.run_of_others(first, end);
  return spaces(c, i, end);
}

// Whether a word may begin with c[i], which is none of its letters: [^\r\n\p{L}\p{N}] with something behind it.
bool may_lead(const Chars& c, size_t i, size_t end) {
  return i + 1 < end && !c.is_line_end(i) && !c.is(i, kLetter | kNumber);
}

// \p{N}{1,digits}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+ ; with `slashes`, [\r\n/]* instead.
size_t no_word(const Chars& c, size_t i, size_t end, size_t digits, bool slashes) {
  if (c.is(i, kNumber)) return c.run(i, std::min(end, i + digits), kNumber);
  size_t first = c.cp[i] == ' ' && i + 1 < end ? i + 1 : i;
  if (c.is_other(first)) {
    size_t stop = c.run_of_others(first, end);
    while (stop < end && (c.is_line_end(stop) || (slashes && c.cp[stop] == '/'))) stop++;
    return stop;
  }
  for (size_t stop = c.run(i, end, kSpace); stop > i; stop--)
    if (c.is_line_end(stop - 1)) return stop;
  return spaces(c, i, end);
}

// (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,digits}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|
// \s+(?!\S)|\s+
size_t word_modern(const Chars& c, size_t i, size_t end, size_t digits) {
  if (size_t stop = contraction(c, i, end, true); stop > i) return stop;
  if (c.is(i, kLetter)) return c.run(i, end, kLetter);
  if (may_lead(c, i, end) && c.is(i + 1, kLetter)) return c.run(i + 1, end, kLetter);
  return no_word(c, i, end, digits, false);
}

// U*L+ where U and L are the classes of is_upper and is_lower. Returns its end, or i. Where no L follows the run of U,
// the last of the run that is both has to be it.
size_t ending_low(const Chars& c, size_t i, size_t end) {
  size_t upper = c.run_of_upper(i, end), stop = upper;
  while (stop < end && c.is_lower(stop)) stop++;
  if (stop > upper) return stop;
  while (upper > i && !c.is_lower(upper - 1)) upper--;
  return upper;
}

// With U and L as above: [^\r\n\p{L}\p{N}]?U*L+|[^\r\n\p{L}\p{N}]?U+L*, and what no_word says of the rest. With
// `contractions`, (?i:'s|'t|'re|'ve|'m|'ll|'d)? behind each of the two.
size_t word_cased(const Chars& c, size_t i, size_t end, size_t digits, bool contractions) {
  size_t first = may_lead(c, i, end) ? i + 1 : i;
  size_t stop = ending_low(c, first, end);
  if (stop == first) stop = ending_low(c, first = i, end);
  if (stop == i && may_lead(c, i, end)) stop = c.run_of_upper(first = i + 1, end);
  if (stop == first) stop = c.run_of_upper(i, end);
  if (stop == i) return no_word(c, i, end, digits, true);
  return contractions && stop < end ? contraction(c, stop, end, true) : stop;
}

// The end of the word that begins at i.
size_t word_end(Pre pre, const Chars& c, size_t i, size_t end) {
  switch (pre) {
    case Pre::LlamaBpe: return word_modern(c, i, end, 3);
    case Pre::Qwen2: return word_modern(c, i, end, 1);
    case Pre::Tekken: return word_cased(c, i, end, 1, false);
    case Pre::Gpt4o: return word_cased(c, i, end, 3, true);
    default: return word_gpt2(c, i, end);
  }
}

}  // namespace

std::optional<Pre> pre_by_name(std::string_view name) {
  if (name == "gpt-2") return Pre::Gpt2;
  if (name == "smollm") return Pre::Smollm;
  if (name == "llama-bpe") return Pre::LlamaBpe;
  if (name == "qwen2") return Pre::Qwen2;
  if (name == "tekken") return Pre::Tekken;
  if (name == "gpt-4o") return Pre::Gpt4o;
  return {};
}

void split_words(Pre pre, std::string_view text, const std::function<void(std::string_view)>& word) {
  Chars c(text);
  size_t n = c.cp.size();
  for (size_t i = 0, end = n; i < n;) {
    if (pre == Pre::Smollm) {  // the expression sees what stands between numbers, each number alone
      end = i;
      while (end < n && !c.is(end, kNumeric)) end++;
      if (end == i) end = i + 1;
    }
    do {
      size_t stop = word_end(pre, c, i, end);
      word(text.substr(c.offset[i], c.offset[stop] - c.offset[i]));
      i = stop;
    } while (i < end);
  }
}

void AddedTokens::add(std::string_view text, int32_t id) {
  if (text.empty()) return;
  begins_[static_cast<uint8_t>(text[0])] = true;
  uint32_t node = 0;
  for (char byte : text) {
    auto [child, fresh] = children_.try_emplace(uint64_t{node} << 8 | static_cast<uint8_t>(byte), id_.size());
    if (fresh) id_.push_back(-1);
    node = child->second;
  }
  if (id_[node] < 0) id_[node] = id;
}

std::optional<AddedTokens::Match> AddedTokens::match_at(std::string_view text, size_t at) const {
  std::optional<Match> longest;
  uint32_t node = 0;
  for (size_t i = at; i < text.size(); i++) {
    auto child = children_.find(uint64_t{node} << 8 | static_cast<uint8_t>(text[i]));
    if (child == children_.end()) break;
    node = child->second;
    if (id_[node] >= 0) longest = Match{at, i + 1, id_[node]};
  }
  return longest;
}

std::optional<AddedTokens::Match> AddedTokens::find(std::string_view text, size_t from) const {
  for (size_t at = from; at < text.size(); at++)
    if (begins_[static_cast<uint8_t>(text[at])])
      if (auto match = match_at(text, at)) return match;
  return {};
}

}  // namespace rksim
