#include "tokenizer_split.h"

#include <algorithm>

#include "unicode.h"

namespace rksim {
namespace {

using unicode::kLetter, unicode::kNumber, unicode::kNumeric, unicode::kSpace;

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
  bool is_line_end(size_t i) const { return cp[i] == '\n' || cp[i] == '\r'; }
  size_t run(size_t i, size_t end, uint8_t flag) const {
    while (i < end && is(i, flag)) i++;
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

// (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,digits}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|
// \s+(?!\S)|\s+
size_t word_modern(const Chars& c, size_t i, size_t end, size_t digits) {
  if (size_t stop = contraction(c, i, end, true); stop > i) return stop;
  bool may_lead = !c.is_line_end(i) && !c.is(i, kLetter | kNumber);
  if (c.is(i, kLetter)) return c.run(i, end, kLetter);
  if (may_lead && i + 1 < end && c.is(i + 1, kLetter)) return c.run(i + 1, end, kLetter);
  if (c.is(i, kNumber)) return c.run(i, std::min(end, i + digits), kNumber);
  size_t first = c.cp[i] == ' ' && i + 1 < end ? i + 1 : i;
  if (c.is_other(first)) {
    size_t stop = c.run_of_others(first, end);
    while (stop < end && c.is_line_end(stop)) stop++;
    return stop;
  }
  for (size_t stop = c.run(i, end, kSpace); stop > i; stop--)
    if (c.is_line_end(stop - 1)) return stop;
  return spaces(c, i, end);
}

}  // namespace

std::optional<Pre> pre_by_name(std::string_view name) {
  if (name == "gpt-2") return Pre::Gpt2;
  if (name == "smollm") return Pre::Smollm;
  if (name == "llama-bpe") return Pre::LlamaBpe;
  if (name == "qwen2") return Pre::Qwen2;
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
      size_t stop = pre == Pre::LlamaBpe ? word_modern(c, i, end, 3)
                    : pre == Pre::Qwen2  ? word_modern(c, i, end, 1)
                                         : word_gpt2(c, i, end);
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
