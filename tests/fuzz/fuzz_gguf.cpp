// libFuzzer: any bytes as model.sim.gguf are an Error, or a vocabulary and a model that work: never a crash. Built with
// FUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION, under which the reader does not compare checksums: else nothing behind
// them would ever be reached.
#include <sys/mman.h>
#include <unistd.h>

#include <string>

#include "error.h"
#include "model.h"

namespace {

void use_vocabulary(const std::string& path) {
  rksim::Gguf file(path, rksim::Gguf::Content::kVocabulary, 1);
  rksim::Tokenizer t(file);
  for (bool special : {false, true}) {
    const auto ids = t.encode("a b\nabab <s>\xe2\x96\x81 \xc3\xa9\xff", true, special);
    t.decode(ids.data(), ids.size(), special);
  }
  for (int32_t id = -1; id <= t.size() && id < 1000; id++) t.decode(&id, 1, false);
}

void use_model(const std::string& path) {
  rksim::Model model(path, 1);
  const rksim::Shape& s = model.shape;
  if (int64_t{s.n_layers} * s.hidden * s.intermediate > (1 << 22) || s.n_vocab > (1 << 16)) return;
  rksim::Session session(model, 4);
  const int32_t ids[] = {0, s.n_vocab - 1, 0};
  session.eval(ids, 3);
  session.eval(ids, 3);  // over the end of the context
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const int fd = memfd_create("model", 0);
  static const std::string path = "/proc/self/fd/" + std::to_string(fd);
  if (ftruncate(fd, 0) != 0 || pwrite(fd, data, size, 0) != static_cast<ssize_t>(size)) return 0;
  for (auto* use : {use_vocabulary, use_model}) {
    try {
      use(path);
    } catch (const rksim::Error&) {
    }
  }
  return 0;
}
