// libFuzzer: any bytes as model.sim.gguf are an Error or a model, never a crash. Built with
// FUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION, under which the reader does not compare checksums: else nothing behind
// them would ever be reached.
#include <sys/mman.h>
#include <unistd.h>

#include <string>

#include "error.h"
#include "model.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const int fd = memfd_create("model", 0);
  static const std::string path = "/proc/self/fd/" + std::to_string(fd);
  if (ftruncate(fd, 0) != 0 || pwrite(fd, data, size, 0) != static_cast<ssize_t>(size)) return 0;
  try {
    rksim::Model model(path, 1);
    // A model that loads must also run.
    if (int64_t{model.shape.n_layers} * model.shape.hidden * model.shape.intermediate < (1 << 22) &&
        model.shape.n_vocab < (1 << 16)) {
      rksim::Session session(model, 4);
      const int32_t ids[] = {0, model.shape.n_vocab - 1, 0};
      session.eval(ids, 3);
    }
  } catch (const rksim::Error&) {
  }
  return 0;
}
