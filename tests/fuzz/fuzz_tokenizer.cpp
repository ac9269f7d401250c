// libFuzzer: any bytes as text are ids, and the ids are the text again. RKSIM_FUZZ_MODELS names vocabularies
// (tokenizer.gguf or model.sim.gguf, with ':' between) that have a token for each of the 256 bytes; the input's first
// byte chooses one.
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <sstream>
#include <string>
#include <vector>

#include "gguf.h"
#include "tokenizer.h"

namespace {

struct Vocabulary {
  explicit Vocabulary(const std::string& path) : file(path, rksim::Gguf::Content::kVocabulary, 1), tokenizer(file) {}
  rksim::Gguf file;
  rksim::Tokenizer tokenizer;
};

const std::vector<std::unique_ptr<Vocabulary>>& vocabularies() {
  static const auto* all = [] {
    auto* opened = new std::vector<std::unique_ptr<Vocabulary>>;
    const char* paths = std::getenv("RKSIM_FUZZ_MODELS");
    std::istringstream list(paths ? paths : "");
    for (std::string path; std::getline(list, path, ':');) opened->push_back(std::make_unique<Vocabulary>(path));
    if (opened->empty()) {
      std::fputs("set RKSIM_FUZZ_MODELS to vocabularies\n", stderr);
      std::exit(2);
    }
    return opened;
  }();
  return *all;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const rksim::Tokenizer& t = vocabularies()[data[0] % vocabularies().size()]->tokenizer;
  const std::string text(reinterpret_cast<const char*>(data) + 1, size - 1);
  for (bool special : {false, true}) {
    const auto ids = t.encode(text, false, special);
    for (int32_t id : ids)
      if (id < 0 || id >= t.size()) std::abort();
    const std::string back = t.decode(ids.data(), ids.size(), false);
    std::string pieces;
    for (int32_t id : ids) pieces += t.piece(id, false);
    if (pieces != back && !(t.drops_first_space() && pieces == " " + back)) std::abort();
    // What was valid UTF-8 comes back byte for byte; the rest was replaced once and then stays. Where the tokenizer
    // puts a space before a text, it does so before each part that a special token leaves: such a text may grow.
    if (t.drops_first_space()) continue;
    const auto again = t.encode(back, false, special);
    if (t.decode(again.data(), again.size(), false) != back) std::abort();
  }
  return 0;
}
