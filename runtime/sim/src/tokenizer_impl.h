// What a tokenizer knows after loading; tokenizer_load.cpp fills it, tokenizer.cpp uses it.
#pragma once
#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "tokenizer.h"
#include "tokenizer_bpe.h"
#include "tokenizer_split.h"

namespace rksim {

constexpr std::string_view kSpaceMark = "\xE2\x96\x81";  // U+2581, a space in SentencePiece's vocabularies

struct Tokenizer::Impl {
  explicit Impl(const Gguf& file);

  // GGUF's token types, and what they mean here.
  enum Type : uint8_t { Normal = 1, Unknown, Control, UserDefined, Unused, Byte };
  bool is_special(size_t id) const { return types[id] == Control || types[id] == Unknown; }
  // Typed text never becomes a special token, nor a row that only pads the embedding.
  bool is_text(size_t id) const { return !is_special(id) && types[id] != Unused; }

  // What stands before each part of a text between added tokens: nothing; a space, always (the normaliser Prepend);
  // a space unless there is one (Metaspace, before every part or before the text's first).
  enum class Lead { None, Always, UnlessSpace, FirstUnlessSpace };

  // The text as the model's normaliser leaves it; `buffer` holds it where it has changed.
  std::string_view normalise(std::string_view text, std::string& buffer) const;

  size_t n = 0;
  bool byte_level = false;  // else SentencePiece-style
  Pre pre = Pre::Gpt2;
  bool nfc = false;            // the normaliser of a byte-level model
  bool ignore_merges = false;  // a word that is a token is that token, whatever the merges would make of it
  Lead lead = Lead::None;
  std::vector<uint8_t> types;
  std::string bytes;            // all pieces after each other
  std::vector<size_t> ends{0};  // piece i is bytes[ends[i], ends[i + 1])
  std::array<int32_t, 256> byte_ids;
  std::unordered_map<uint32_t, int32_t> char_ids;             // SentencePiece-style: single characters
  std::unordered_map<std::string_view, int32_t> whole_words;  // where merges are ignored
  MergeTable merges;
  AddedTokens added;
  AddedTokens
      normalised;  // those that are looked for in what the normaliser made of a text, by what it makes of theirs
  int32_t bos = -1, eos = -1, unknown = -1;
  bool add_bos = false;
  std::vector<int32_t> ends_of_answer;

 private:
  using Texts = std::vector<std::string_view>;
  using Lookup = std::unordered_map<std::string_view, int32_t>;
  struct Split;
  void load_tokens(const Gguf& file, const Texts& texts);
  void load_pieces(const Texts& texts);
  void load_characters(const Texts& texts);
  void load_merges(const Gguf& file, const Texts& texts);
  void load_ids(const Gguf& file);
  Lookup lookup(const Texts& texts) const;
  void merges_by_rank(const Gguf& file, const Texts& texts, const Texts& listed);
  void merges_by_score(const Gguf& file, const Texts& texts, const std::vector<float>& scores);
  void split_by_score(const Lookup& ids, std::string_view text, int32_t id, float score, std::vector<Split>& out) const;
};

}  // namespace rksim
