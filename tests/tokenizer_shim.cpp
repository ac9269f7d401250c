// What the tokenizer is made of as C functions, for tests/sim/test_tokenizer_parts.py.
#include "tokenizer.h"
#include "tokenizer_split.h"
#include "unicode.h"

extern "C" {

// The end of every word of a text, in bytes; returns how many there are. `ends` must hold one for each byte.
size_t shim_split(const char* pre, const char* text, size_t length, uint32_t* ends) {
  size_t count = 0;
  rksim::split_words(*rksim::pre_by_name(pre), {text, length}, [&](std::string_view word) {
    ends[count++] = static_cast<uint32_t>(word.data() + word.size() - text);
  });
  return count;
}

size_t shim_incomplete(const char* text, size_t length) { return rksim::incomplete_utf8({text, length}); }

// NFC into `out`, which must be large enough: no character becomes more than three times as long.
size_t shim_nfc(const char* text, size_t length, char* out) {
  std::string buffer;
  std::string_view found = rksim::unicode::nfc({text, length}, buffer);
  found.copy(out, found.size());
  return found.size();
}
}
