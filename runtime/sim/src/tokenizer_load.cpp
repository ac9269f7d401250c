// Reads tokenizer.ggml.* and builds everything that encoding looks up.
#include <algorithm>
#include <cmath>
#include <tuple>

#include "error.h"
#include "gguf.h"
#include "tokenizer_impl.h"
#include "unicode.h"

namespace rksim {
namespace {

constexpr size_t kMaxTokens = 1u << 24;
constexpr size_t kMaxScoredBytes = 1024;  // of a token whose merges come from scores: splitting it is quadratic

[[noreturn]] void fail(const Gguf& file, const std::string& what) {
  throw Error(file.path() + ": " + what + "; convert the model again");
}

// For a message: always valid UTF-8, never a page.
std::string quoted(std::string_view text) {
  std::string buffer;
  return "'" + std::string(unicode::valid_utf8(text.substr(0, 60), buffer)) + "'";
}

// GPT-2's alphabet: printable bytes stand for themselves, the others for U+0100 and on, in order.
const std::array<uint32_t, 256>& alphabet() {
  static const auto table = [] {
    std::array<uint32_t, 256> chars{};
    uint32_t next = 0x100;
    for (uint32_t b = 0; b < 256; b++) {
      bool printable = (b > 0x20 && b < 0x7F) || (b > 0xA0 && b != 0xAD);
      chars[b] = printable ? b : next++;
    }
    return chars;
  }();
  return table;
}

// The bytes that a token's letters of that alphabet stand for; the text itself where a letter is none.
std::string from_alphabet(std::string_view text) {
  static const auto table = [] {
    std::array<int16_t, 0x200> bytes;
    bytes.fill(-1);
    for (size_t b = 0; b < 256; b++) bytes[alphabet()[b]] = static_cast<int16_t>(b);
    return bytes;
  }();
  std::string found;
  for (size_t at = 0; at < text.size();) {
    unicode::Decoded c = unicode::decode(text, at);
    if (c.cp >= table.size() || table[c.cp] < 0) return std::string(text);
    found.push_back(static_cast<char>(table[c.cp]));
    at += c.length;
  }
  return found;
}

// <0x0A> is the byte 10; -1 for any other text.
int byte_of(std::string_view text) {
  if (text.size() != 6 || text.substr(0, 3) != "<0x" || text[5] != '>') return -1;
  constexpr std::string_view kDigits = "0123456789ABCDEF";
  size_t high = kDigits.find(text[3]), low = kDigits.find(text[4]);
  return high == kDigits.npos || low == kDigits.npos ? -1 : static_cast<int>(high * 16 + low);
}

std::string with_spaces(std::string_view text) {
  std::string found;
  for (size_t at = 0; at < text.size();) {
    bool mark = text.substr(at, kSpaceMark.size()) == kSpaceMark;
    found.push_back(mark ? ' ' : text[at]);
    at += mark ? kSpaceMark.size() : 1;
  }
  return found;
}

}  // namespace

struct Tokenizer::Impl::Split {
  float score;
  uint32_t left_length, right_length;  // in characters
  int32_t left, right, id;
};

Tokenizer::Impl::Impl(const Gguf& file) {
  std::string_view model = file.need_string("tokenizer.ggml.model");
  std::string_view name = file.string("tokenizer.ggml.pre").value_or(model == "gpt2" ? "gpt-2" : "default");
  byte_level = model == "gpt2";
  if (byte_level) {
    auto known = pre_by_name(name);
    if (!known)
      fail(file,
           "its pre-tokeniser " + quoted(name) + " is none of gpt-2, smollm, llama-bpe, qwen2, tekken and gpt-4o");
    pre = *known;
    nfc = file.boolean("rksim.nfc").value_or(pre == Pre::Qwen2);
    ignore_merges = file.boolean("rksim.ignore_merges").value_or(pre == Pre::LlamaBpe);
  } else if (model == "llama") {
    if (name == "metaspace-always")
      lead = Lead::UnlessSpace;
    else if (name == "metaspace-first")
      lead = Lead::FirstUnlessSpace;
    else if (name == "default")
      lead = Lead::Always;
    else
      fail(file, "its pre-tokeniser " + quoted(name) + " is none of default, metaspace-first, metaspace-always");
    if (!file.boolean("tokenizer.ggml.add_space_prefix").value_or(true)) lead = Lead::None;
  } else {
    fail(file, "its tokenizer " + quoted(model) + " is neither gpt2 nor llama");
  }
  auto texts = file.strings("tokenizer.ggml.tokens");
  if (!texts || texts->empty() || texts->size() > kMaxTokens) fail(file, "tokenizer.ggml.tokens holds no vocabulary");
  load_tokens(file, *texts);
  load_pieces(*texts);
  load_characters(*texts);
  load_merges(file, *texts);
  load_ids(file);
}

void Tokenizer::Impl::load_tokens(const Gguf& file, const Texts& texts) {
  n = texts.size();
  types.assign(n, Normal);
  if (auto given = file.i32s("tokenizer.ggml.token_type")) {
    if (given->size() != n)
      fail(file, "there are " + std::to_string(n) + " tokens and " + std::to_string(given->size()) + " token types");
    for (size_t i = 0; i < n; i++) {
      int32_t type = (*given)[i];
      if (type < Normal || type > Byte)
        fail(file, "token " + std::to_string(i) + " has the unknown type " + std::to_string(type));
      types[i] = static_cast<uint8_t>(type);
    }
  }
  std::unordered_set<int32_t> late;
  if (auto ids = file.i32s("rksim.normalised_token_ids")) late.insert(ids->begin(), ids->end());
  std::string buffer;
  for (size_t i = 0; i < n; i++) {
    if (!is_special(i) && types[i] != UserDefined) continue;
    auto id = static_cast<int32_t>(i);
    late.count(id) ? normalised.add(normalise(texts[i], buffer), id) : added.add(texts[i], id);
  }
}

void Tokenizer::Impl::load_pieces(const Texts& texts) {
  ends.reserve(n + 1);
  for (size_t i = 0; i < n; i++) {
    int byte = byte_level ? -1 : byte_of(texts[i]);
    if (types[i] == Unused) {
      // Pads the embedding: stands for nothing.
    } else if (is_special(i) || (byte_level && types[i] == UserDefined)) {
      bytes += texts[i];
    } else if (byte_level) {
      bytes += from_alphabet(texts[i]);
    } else if (byte >= 0) {
      bytes.push_back(static_cast<char>(byte));
    } else {
      bytes += with_spaces(texts[i]);
    }
    ends.push_back(bytes.size());
  }
}

void Tokenizer::Impl::load_characters(const Texts& texts) {
  byte_ids.fill(-1);
  for (size_t i = 0; i < n; i++) {
    if (!is_text(i) || texts[i].empty()) continue;
    auto id = static_cast<int32_t>(i);
    unicode::Decoded c = unicode::decode(texts[i], 0);
    bool single = c.valid && c.length == texts[i].size();
    if (int byte = byte_level ? -1 : byte_of(texts[i]); byte >= 0 && byte_ids[byte] < 0) byte_ids[byte] = id;
    if (single) char_ids.emplace(c.cp, id);
    if (ignore_merges && types[i] == Normal)
      whole_words.emplace(std::string_view(bytes).substr(ends[i], ends[i + 1] - ends[i]), id);
  }
  if (!byte_level) return;
  for (size_t b = 0; b < 256; b++)
    if (auto found = char_ids.find(alphabet()[b]); found != char_ids.end()) byte_ids[b] = found->second;
}

Tokenizer::Impl::Lookup Tokenizer::Impl::lookup(const Texts& texts) const {
  Lookup ids;
  ids.reserve(n);
  for (bool text : {true, false})  // of two tokens of one spelling, the one that text can become
    for (size_t i = 0; i < n; i++)
      if (is_text(i) == text) ids.emplace(texts[i], static_cast<int32_t>(i));
  return ids;
}

void Tokenizer::Impl::load_merges(const Gguf& file, const Texts& texts) {
  auto listed = file.strings("tokenizer.ggml.merges");
  if (listed && (byte_level || !listed->empty())) return merges_by_rank(file, texts, *listed);
  auto scores = file.f32s("tokenizer.ggml.scores");
  if (byte_level) fail(file, "it lacks tokenizer.ggml.merges");
  if (!scores) fail(file, "its tokenizer has neither scores nor merges");
  if (scores->size() != n)
    fail(file, "there are " + std::to_string(n) + " tokens and " + std::to_string(scores->size()) + " scores");
  merges_by_score(file, texts, *scores);
}

void Tokenizer::Impl::merges_by_rank(const Gguf& file, const Texts& texts, const Texts& listed) {
  Lookup ids = lookup(texts);
  merges.reserve(listed.size());
  std::string joined;
  auto id_of = [&](std::string_view text, size_t rank) {
    auto found = ids.find(text);
    if (found == ids.end())
      fail(file, "merge " + std::to_string(rank) + " of its tokenizer needs " + quoted(text) + ", which is no token");
    return found->second;
  };
  for (size_t rank = 0; rank < listed.size(); rank++) {
    std::string_view merge = listed[rank];
    size_t space = merge.find(' ', 1);
    if (space == merge.npos || space + 1 == merge.size() || merge.find(' ', space + 1) != merge.npos)
      fail(file, "merge " + std::to_string(rank) + " of its tokenizer is " + quoted(merge) + ", not two tokens");
    joined.assign(merge.substr(0, space)).append(merge.substr(space + 1));
    int32_t left = id_of(merge.substr(0, space), rank), right = id_of(merge.substr(space + 1), rank);
    int32_t whole = id_of(joined, rank);
    if (is_text(left) && is_text(right) && is_text(whole)) merges.add(left, right, static_cast<uint32_t>(rank), whole);
  }
}

// The merges that transformers derives from a SentencePiece vocabulary, in its order: every cut of every token into
// two tokens; the highest score first, then the longest left part, then the longest right part, then the token's id.
void Tokenizer::Impl::merges_by_score(const Gguf& file, const Texts& texts, const std::vector<float>& scores) {
  Lookup ids = lookup(texts);
  std::vector<Split> splits;
  for (size_t i = 0; i < n; i++) {
    if (!is_text(i)) continue;
    if (!std::isfinite(scores[i])) fail(file, "the score of token " + std::to_string(i) + " is not a finite number");
    if (texts[i].size() > kMaxScoredBytes)
      fail(file, "token " + std::to_string(i) + " has " + std::to_string(texts[i].size()) + " bytes, at most " +
                     std::to_string(kMaxScoredBytes) + " can be merged by score");
    split_by_score(ids, texts[i], static_cast<int32_t>(i), scores[i], splits);
  }
  std::sort(splits.begin(), splits.end(), [](const Split& a, const Split& b) {
    return std::tie(b.score, b.left_length, b.right_length, a.id) <
           std::tie(a.score, a.left_length, a.right_length, b.id);
  });
  merges.reserve(splits.size());
  for (size_t rank = 0; rank < splits.size(); rank++)
    merges.add(splits[rank].left, splits[rank].right, static_cast<uint32_t>(rank), splits[rank].id);
}

void Tokenizer::Impl::split_by_score(const Lookup& ids, std::string_view text, int32_t id, float score,
                                     std::vector<Split>& out) const {
  size_t first = out.size();
  uint32_t length = 0;
  for (size_t at = 0; at < text.size(); length++) {
    auto left = at ? ids.find(text.substr(0, at)) : ids.end();
    auto right = left != ids.end() ? ids.find(text.substr(at)) : ids.end();
    if (right != ids.end() && is_text(left->second) && is_text(right->second))
      out.push_back({score, length, 0, left->second, right->second, id});
    at += unicode::decode(text, at).length;
  }
  for (size_t i = first; i < out.size(); i++) out[i].right_length = length - out[i].left_length;
}

void Tokenizer::Impl::load_ids(const Gguf& file) {
  auto checked = [&](const char* key, uint32_t id) {
    if (id >= n)
      fail(file, std::string(key) + " is " + std::to_string(id) + ", the vocabulary ends at " + std::to_string(n - 1));
    return static_cast<int32_t>(id);
  };
  auto read = [&](const char* key) {
    auto id = file.u32(key);
    return id ? checked(key, *id) : -1;
  };
  bos = read("tokenizer.ggml.bos_token_id");
  eos = read("tokenizer.ggml.eos_token_id");
  unknown = read("tokenizer.ggml.unknown_token_id");
  add_bos = file.boolean("tokenizer.ggml.add_bos_token").value_or(!byte_level) && bos >= 0;
  if (auto ends = file.i32s("rksim.eos_token_ids"); ends && !ends->empty()) {
    for (int32_t id : *ends) ends_of_answer.push_back(checked("rksim.eos_token_ids", static_cast<uint32_t>(id)));
  } else {
    for (int32_t id : {eos, read("tokenizer.ggml.eot_token_id")})
      if (id >= 0) ends_of_answer.push_back(id);
  }
  auto read_all = [&](const char* key, std::unordered_set<int32_t>& into) {
    if (auto ids = file.i32s(key))
      for (int32_t id : *ids) into.insert(checked(key, static_cast<uint32_t>(id)));
  };
  read_all("rksim.lstrip_token_ids", added.strip_left);
  read_all("rksim.rstrip_token_ids", added.strip_right);
  normalised.strip_left = added.strip_left;
  normalised.strip_right = added.strip_right;
  if (eos < 0 && !ends_of_answer.empty()) eos = ends_of_answer[0];
}

}  // namespace rksim
