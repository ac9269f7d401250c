// Text to ids and back, bit-exact with Hugging Face's tokenizers. Knows nothing of the model behind it.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace rksim {

class Gguf;

class Tokenizer {
 public:
  // Reads tokenizer.ggml.*; throws Error on a family or pre-tokeniser it does not know, or on ids out of range.
  explicit Tokenizer(const Gguf& file);
  ~Tokenizer();

  // Invalid UTF-8 is read as U+FFFD, one for each maximal invalid part, as Python's errors="replace" does.
  // parse_special: special tokens' texts in `text` become their ids. add_bos: puts bos_id() first if there is one.
  // first: nothing stands before it, where SentencePiece's models may put a space.
  std::vector<int32_t> encode(std::string_view text, bool add_bos, bool parse_special, bool first = true) const;

  // The bytes one id stands for; empty for special tokens when skip_special and for ids out of range.
  // SentencePiece-style: the space that a text's first piece begins with is the caller's to drop (decode does).
  std::string_view piece(int32_t id, bool skip_special) const;
  std::string decode(const int32_t* ids, size_t n, bool skip_special) const;

  int32_t size() const;
  int32_t bos_id() const;              // -1: none
  int32_t eos_id() const;              // tokenizer.ggml.eos_token_id, else the first that ends an answer, -1: none
  bool add_bos() const;                // tokenizer.ggml.add_bos_token
  bool drops_first_space() const;      // decode drops one leading space (add_space_prefix)
  bool ends_answer(int32_t id) const;  // rksim.eos_token_ids, else eos_token_id and eot_token_id
  bool is_special(int32_t id) const;   // control tokens and the unknown token

 private:
  struct Impl;
  class Encoder;
  std::unique_ptr<Impl> impl_;
};

// Number of bytes at the end of `text` that begin a UTF-8 character without finishing it: 0 to 3.
size_t incomplete_utf8(std::string_view text);

}  // namespace rksim
