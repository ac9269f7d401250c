// UTF-8, character classes and NFC as Hugging Face's tokenizers see them. Tables: tools/make_unicode_tables.py.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace rksim::unicode {

// \p{L}, \p{N} and \s of the regular expressions; what the Digits pre-tokeniser takes for a number; \p{Lu} and \p{Lt},
// \p{Ll}, \p{M}.
enum : uint8_t { kLetter = 1, kNumber = 2, kSpace = 4, kNumeric = 8, kUpper = 16, kLower = 32, kMark = 64 };
uint8_t properties(uint32_t cp);

struct Decoded {
  uint32_t cp;      // U+FFFD when not valid
  uint32_t length;  // bytes; of a maximal invalid part when not valid
  bool valid;
  bool cut_off;  // not valid only because the text ends inside a character
};
// The character at byte `at`, which must be inside `text`.
Decoded decode(std::string_view text, size_t at);
void append(std::string& text, uint32_t cp);

// The first byte of the spaces that end at byte `end`, and the byte after those that begin at `at`.
size_t before_spaces(std::string_view text, size_t end);
size_t after_spaces(std::string_view text, size_t at);

// `text` itself when it is what is asked for, else `buffer` filled with it.
std::string_view valid_utf8(std::string_view text, std::string& buffer);  // U+FFFD for each maximal invalid part
std::string_view nfc(std::string_view text, std::string& buffer);         // `text` is valid UTF-8

}  // namespace rksim::unicode
