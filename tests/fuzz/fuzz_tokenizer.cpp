// libFuzzer: any bytes as text are ids, and the ids are the text again. RKSIM_FUZZ_MODEL names a ByteLevel vocabulary
// (a model.sim.gguf or tokenizer.gguf) with a token for each of the 256 bytes: SmolLM2's lacks 21, and drops them.
#include <cstdio>
#include <cstdlib>
#include <string>

#include "error.h"
#include "gguf.h"
#include "tokenizer.h"

namespace {

const rksim::Tokenizer& tokenizer() {
  static rksim::Gguf* file = [] {
    const char* path = std::getenv("RKSIM_FUZZ_MODEL");
    if (!path) {
      std::fputs("set RKSIM_FUZZ_MODEL to a vocabulary\n", stderr);
      std::exit(2);
    }
    return new rksim::Gguf(path, rksim::Gguf::Content::kVocabulary, 1);
  }();
  static rksim::Tokenizer* tokenizer = new rksim::Tokenizer(*file);
  return *tokenizer;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const rksim::Tokenizer& t = tokenizer();
  const std::string text(reinterpret_cast<const char*>(data), size);
  for (bool special : {false, true}) {
    const auto ids = t.encode(text, false, special);
    for (int32_t id : ids)
      if (id < 0 || id >= t.size()) std::abort();
    const std::string back = t.decode(ids.data(), ids.size(), false);
    std::string pieces;
    for (int32_t id : ids) pieces += t.piece(id, false);
    if (pieces != back) std::abort();
    // What was valid UTF-8 comes back byte for byte; the rest was replaced once and then stays.
    const auto again = t.encode(back, false, special);
    if (t.decode(again.data(), again.size(), false) != back) std::abort();
  }
  return 0;
}
