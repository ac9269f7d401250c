"""`make test-aarch64`: the libraries for a board, under qemu-user, give the same bits as those of this machine.

Not part of `make test`: it compiles everything once more and emulates. Needs ziglang (PyPI), qemu-user and
libc6-arm64-cross (Debian).
"""

from __future__ import annotations

import itertools
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

from rk3588.hostlib import SimModel, kernel
from tests import models, smollm2
from tests.sim.test_numerics_features import CASES, ids

ROOT = Path(__file__).resolve().parent.parent
BUILD = ROOT / "build" / "aarch64"
SYSROOT = Path("/usr/aarch64-linux-gnu")
IDS = [1, 5, 9, 44, 7, 7, 120, 3, 88]
FEATURED = ids(39)  # longer than the windows and the original contexts

PROGRAM = r"""
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include "rksim.h"

int main(int count, char **words) {
  void *lib = dlopen(words[1], RTLD_NOW);
  if (!lib) return fprintf(stderr, "%s\n", dlerror()), 1;
  rksim_model *(*open_model)(const char *, int, int) = dlsym(lib, "rksim_open");
  int (*logits)(rksim_model *, const int32_t *, size_t, int, float *, rksim_progress) =
      dlsym(lib, "rksim_logits");
  int (*get_info)(const rksim_model *, rksim_info *) = dlsym(lib, "rksim_get_info");
  const char *(*kernel)(void) = dlsym(lib, "rksim_kernel");
  rksim_model *model = open_model(words[2], 2, 0);
  rksim_info info;
  if (!model || get_info(model, &info)) return 1;
  int32_t ids[64];
  for (int i = 3; i < count; i++) ids[i - 3] = atoi(words[i]);
  size_t n = (size_t)count - 3, size = n * (size_t)info.n_vocab;
  float *out = malloc(size * sizeof *out);
  if (logits(model, ids, n, 0, out, NULL)) return 1;
  fprintf(stderr, "%s\n", kernel());
  return fwrite(out, sizeof *out, size, stdout) != size;
}
"""


def cross_compile(source: Path, program: Path) -> None:
    target = ("-target", "aarch64-linux-gnu.2.28")
    include = ("-I", str(ROOT / "runtime" / "sim" / "include"))
    command = [sys.executable, "-m", "ziglang", "cc", *target, *include, str(source), "-o", str(program), "-ldl"]
    subprocess.run(command, check=True)


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / "logits.c").write_text(PROGRAM, encoding="utf-8")
        cross_compile(folder / "logits.c", folder / "logits")
        dtypes = ["w8a8", "w8a8_g128", "fp16", "fp32"]
        smollm2.convert(models.tiny_llama(folder / "source"), folder, dtypes, name="tiny")
        found = {dtype: folder / f"tiny-rk3588-{dtype}" / "model.sim.gguf" for dtype in dtypes}
        for (feature, described), dtype in itertools.product(CASES.items(), dtypes):
            found[f"{feature}, {dtype}"] = described.write(folder / f"{feature}-{dtype}", dtype)
        for name, model in found.items():
            tokens = IDS if name in dtypes else FEATURED
            with SimModel(model) as here:
                expected = here.logits(tokens).tobytes()
            for wanted in ("neon", "scalar"):
                command = ["qemu-aarch64", "-L", str(SYSROOT), "-E", f"RKSIM_KERNEL={wanted}", str(folder / "logits")]
                arguments = [str(BUILD / "librksim.so"), str(model), *map(str, tokens)]
                done = subprocess.run([*command, *arguments], stdout=subprocess.PIPE, check=True)
                if done.stdout != expected:
                    sys.exit(f"{name}: {wanted} on aarch64 gives other logits than {kernel()} here")
                print(f"{name}: {wanted} on aarch64 = {kernel()} here, CRC-32 {zlib.crc32(expected):08x}")


if __name__ == "__main__":
    main()
