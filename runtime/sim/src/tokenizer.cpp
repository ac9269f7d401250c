#include "tokenizer.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <optional>
#include <string>
#include <unordered_map>

#include "error.h"
#include "gguf.h"
#include "tokenizer_bpe.h"
#include "tokenizer_split.h"
#include "unicode.h"

namespace rksim {
namespace {

enum TokenType : int32_t { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5, kByte = 6 };
constexpr std::string_view kBar = "\xE2\x96\x81";  // U+2581, SentencePiece's space

// The byte that each character of a ByteLevel vocabulary stands for: printable Latin-1 for itself, the others from
// U+0100 on.
std::array<int, 512> byte_level_map() {
  std::array<int, 512> byte_of;
  byte_of.fill(-1);
  size_t next = 256;
  for (int b = 0; b < 256; b++) {
    const bool printable = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
    byte_of[printable ? static_cast<size_t>(b) : next++] = b;
  }
  return byte_of;
}

// nullopt: a character that stands for no byte.
std::optional<std::string> from_byte_level(std::string_view text) {
  static const auto map = byte_level_map();
  std::string out;
  for (size_t at = 0; at < text.size();) {
    const auto c = unicode::decode(text, at);
    if (!c.valid || c.cp >= map.size() || map[c.cp] < 0) return {};
    out += static_cast<char>(map[c.cp]);
    at += c.length;
  }
  return out;
}

std::string replace_all(std::string_view text, std::string_view from, std::string_view to) {
  std::string out;
  for (size_t at = 0; at < text.size();) {
    const size_t found = std::min(text.find(from, at), text.size());
    out.append(text, at, found - at);
    if (found < text.size()) out += to;
    at = found + (found < text.size() ? from.size() : 0);
  }
  return out;
}

}  // namespace

struct Tokenizer::Impl {
  const Gguf& file;
  std::vector<std::string> pieces;  // the bytes each id stands for
  std::vector<int32_t> types;
  std::unordered_map<std::string, int32_t> by_text;  // of normal tokens: bytes, or SentencePiece's text
  std::array<int32_t, 256> byte_id;
  MergeTable merges;
  AddedTokens user_defined, added;  // always read; read where special tokens are
  Pre pre = Pre::Gpt2;
  bool sentence_piece = false, adds_bos = false, space_prefix = false, normalise = false, whole_words = false;
  int32_t bos = -1, unknown = -1;
  std::vector<int32_t> eos;

  explicit Impl(const Gguf& f) : file(f) {
    byte_id.fill(-1);
    read_kind();
    read_tokens();
    read_merges();
    bos = id_at("tokenizer.ggml.bos_token_id");
    unknown = id_at("tokenizer.ggml.unknown_token_id");
    if (const auto ids = file.i32s("rksim.eos_token_ids")) {
      for (int32_t id : *ids) eos.push_back(checked(id, "rksim.eos_token_ids"));
    } else {
      for (const char* key : {"tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id"})
        if (const int32_t id = id_at(key); id >= 0) eos.push_back(id);
    }
    adds_bos = file.boolean("tokenizer.ggml.add_bos_token").value_or(sentence_piece) && bos >= 0;
    space_prefix = sentence_piece && file.boolean("tokenizer.ggml.add_space_prefix").value_or(true);
  }

  int32_t checked(int64_t id, const char* key) const {
    if (id < 0 || id >= static_cast<int64_t>(pieces.size()))
      throw Error(file.path() + ": " + key + " is " + std::to_string(id) + ", outside the vocabulary of " + std::to_string(pieces.size()));
    return static_cast<int32_t>(id);
  }
  int32_t id_at(const char* key) const {
    const auto id = file.u32(key);
    return id ? checked(int64_t{*id}, key) : -1;
  }

  void read_kind() {
    const std::string model(file.need_string("tokenizer.ggml.model"));
    sentence_piece = model == "llama";
    if (sentence_piece) return;
    if (model != "gpt2")
      throw Error(file.path() + ": tokenizer family '" + model + "' is not one this runtime knows (gpt2, llama)");
    const std::string name(file.string("tokenizer.ggml.pre").value_or("gpt-2"));
    const auto found = pre_by_name(name);
    if (!found) throw Error(file.path() + ": pre-tokeniser '" + name + "' is not one this runtime knows (gpt-2, smollm, llama-bpe, qwen2)");
    pre = *found;
    normalise = pre == Pre::Qwen2;
    whole_words = pre == Pre::LlamaBpe;  // Llama 3: a word that is a token is not merged
  }

  void read_tokens() {
    const auto tokens = file.strings("tokenizer.ggml.tokens");
    if (!tokens || tokens->empty()) throw Error(file.path() + " has no tokenizer.ggml.tokens; convert the model again");
    types = file.i32s("tokenizer.ggml.token_type").value_or(std::vector<int32_t>(tokens->size(), kNormal));
    if (types.size() != tokens->size())
      throw Error(file.path() + ": " + std::to_string(tokens->size()) + " tokens have " + std::to_string(types.size()) + " types");
    for (size_t i = 0; i < tokens->size(); i++) {
      const auto id = static_cast<int32_t>(i);
      const std::string text((*tokens)[i]);
      std::string bytes = text;
      if (types[i] == kControl || types[i] == kUserDefined) {
        added.add(text, id);
        if (types[i] == kUserDefined) user_defined.add(text, id);
      } else if (types[i] == kByte) {
        bytes = std::string(1, static_cast<char>(std::strtol(text.size() == 6 ? text.substr(3, 2).c_str() : "", nullptr, 16)));
        byte_id[static_cast<uint8_t>(bytes[0])] = id;
      } else if (sentence_piece) {
        by_text.emplace(text, id);
        bytes = replace_all(text, kBar, " ");
      } else if (types[i] == kNormal) {
        if (const auto plain = from_byte_level(text)) bytes = *plain;
        by_text.emplace(bytes, id);
        if (bytes.size() == 1) byte_id[static_cast<uint8_t>(bytes[0])] = id;
      }
      pieces.push_back(std::move(bytes));
    }
  }

  int32_t lookup(const std::string& text) const {
    const auto it = by_text.find(text);
    return it == by_text.end() ? -1 : it->second;
  }

  void read_merges() {
    const auto lines = file.strings("tokenizer.ggml.merges");
    if (lines) {
      merges.reserve(lines->size());
      for (size_t i = 0; i < lines->size(); i++) {
        const std::string_view line = (*lines)[i];
        const size_t space = line.find(' ', 1);
        const auto half = [&](std::string_view part) {
          if (sentence_piece) return std::string(part);
          return from_byte_level(part).value_or(std::string(part));
        };
        const std::string left = space == line.npos ? "" : half(line.substr(0, space)), right = space == line.npos ? "" : half(line.substr(space + 1));
        const int32_t a = lookup(left), b = lookup(right), merged = lookup(left + right);
        if (a < 0 || b < 0 || merged < 0)
          throw Error(file.path() + ": merge " + std::to_string(i) + " ('" + std::string(line) + "') names a token that the vocabulary lacks");
        merges.add(a, b, static_cast<uint32_t>(i), merged);
      }
    } else if (sentence_piece) {
      merges_from_scores();
    }
  }

  // SentencePiece joins the two neighbours whose union scores highest; every pair that makes a token is a merge.
  void merges_from_scores() {
    const auto scores = file.f32s("tokenizer.ggml.scores");
    if (!scores || scores->size() != pieces.size())
      throw Error(file.path() + " needs tokenizer.ggml.merges or one tokenizer.ggml.scores for each token; convert the model again");
    std::vector<std::pair<float, int32_t>> order;
    for (const auto& [text, id] : by_text) order.emplace_back(-(*scores)[static_cast<size_t>(id)], id);
    std::sort(order.begin(), order.end());
    struct Pair {
      int32_t left, right;
      uint32_t rank;
      int32_t id;
    };
    std::vector<Pair> pairs;
    const auto tokens = *file.strings("tokenizer.ggml.tokens");
    for (size_t rank = 0; rank < order.size(); rank++) {
      const std::string_view text = tokens[static_cast<size_t>(order[rank].second)];
      for (size_t cut = 1; cut < text.size(); cut++) {
        if ((static_cast<uint8_t>(text[cut]) & 0xC0) == 0x80) continue;
        const int32_t a = lookup(std::string(text.substr(0, cut))), b = lookup(std::string(text.substr(cut)));
        if (a >= 0 && b >= 0) pairs.push_back({a, b, static_cast<uint32_t>(rank), order[rank].second});
      }
    }
    merges.reserve(pairs.size());
    for (const Pair& p : pairs) merges.add(p.left, p.right, p.rank, p.id);
  }

  void encode_bytes(std::string_view text, Merger& merger, std::vector<int32_t>& ids) const {
    std::string buffer;
    if (normalise) text = unicode::nfc(text, buffer);
    split_words(pre, text, [&](std::string_view word) {
      if (whole_words)
        if (const int32_t id = lookup(std::string(word)); id >= 0) return ids.push_back(id);
      for (char c : word)
        if (const int32_t id = byte_id[static_cast<uint8_t>(c)]; id >= 0) merger.parts.push_back(id);
      merger.append_to(ids);
    });
  }

  // Characters that are no tokens become their bytes' tokens, or one unknown for a run of them.
  void encode_sentence(std::string_view text, Merger& merger, std::vector<int32_t>& ids) const {
    const std::string barred = (space_prefix ? std::string(kBar) : std::string()) + replace_all(text, " ", kBar);
    bool after_unknown = false;
    for (size_t at = 0; at < barred.size();) {
      const size_t length = unicode::decode(barred, at).length;
      const std::string c = barred.substr(at, length);
      at += length;
      if (const int32_t id = lookup(c); id >= 0) {
        merger.parts.push_back(id);
      } else if (std::all_of(c.begin(), c.end(), [&](char b) { return byte_id[static_cast<uint8_t>(b)] >= 0; })) {
        for (char b : c) merger.parts.push_back(byte_id[static_cast<uint8_t>(b)]);
      } else {
        if (!after_unknown && unknown >= 0) merger.parts.push_back(unknown);
        after_unknown = true;
        continue;
      }
      after_unknown = false;
    }
    merger.append_to(ids);
  }
};

Tokenizer::Tokenizer(const Gguf& file) : impl_(std::make_unique<Impl>(file)) {}
Tokenizer::~Tokenizer() = default;

std::vector<int32_t> Tokenizer::encode(std::string_view text, bool add_bos, bool parse_special) const {
  const Impl& t = *impl_;
  std::vector<int32_t> ids;
  if (add_bos && t.bos >= 0) ids.push_back(t.bos);
  std::string buffer;
  text = unicode::valid_utf8(text, buffer);
  Merger merger(t.merges);
  const AddedTokens& added = parse_special ? t.added : t.user_defined;
  for (size_t at = 0; at < text.size();) {
    const auto match = added.find(text, at);
    const size_t end = match ? match->at : text.size();
    if (end > at) {
      if (t.sentence_piece)
        t.encode_sentence(text.substr(at, end - at), merger, ids);
      else
        t.encode_bytes(text.substr(at, end - at), merger, ids);
    }
    if (match) ids.push_back(match->id);
    at = match ? end + match->length : end;
  }
  return ids;
}

std::string_view Tokenizer::piece(int32_t id, bool skip_special) const {
  if (id < 0 || id >= size() || (skip_special && is_special(id))) return {};
  return impl_->pieces[static_cast<size_t>(id)];
}

std::string Tokenizer::decode(const int32_t* ids, size_t n, bool skip_special) const {
  std::string text;
  for (size_t i = 0; i < n; i++) text += piece(ids[i], skip_special);
  if (drops_first_space() && !text.empty() && text[0] == ' ') text.erase(0, 1);
  return text;
}

int32_t Tokenizer::size() const { return static_cast<int32_t>(impl_->pieces.size()); }
int32_t Tokenizer::bos_id() const { return impl_->bos; }
int32_t Tokenizer::eos_id() const { return impl_->eos.empty() ? -1 : impl_->eos.front(); }
bool Tokenizer::add_bos() const { return impl_->adds_bos; }
bool Tokenizer::drops_first_space() const { return impl_->space_prefix; }
bool Tokenizer::ends_answer(int32_t id) const {
  return std::find(impl_->eos.begin(), impl_->eos.end(), id) != impl_->eos.end();
}
bool Tokenizer::is_special(int32_t id) const {
  return id >= 0 && id < size() && impl_->types[static_cast<size_t>(id)] == kControl;
}

}  // namespace rksim
