"""`make test-x86_64`: the libraries for old distributions need no newer glibc, and give the same bits as those of here.

Not part of `make test`: it compiles everything once more. Needs ziglang (PyPI) and nm (binutils).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import zlib
from pathlib import Path

from tests import models, smollm2

BUILD = Path(__file__).resolve().parent.parent / "build" / "x86_64"
NEWEST = (2, 17)
DTYPES = ["w8a8", "w8a8_g128", "fp16", "fp32"]
IDS = [1, 5, 9, 44, 7, 7, 120, 3, 88]
LOGITS = """
import sys
from rk3588.hostlib import SimModel, kernel
print(kernel(), file=sys.stderr)
with SimModel(sys.argv[1]) as model:
    sys.stdout.buffer.write(model.logits([int(word) for word in sys.argv[2:]]).tobytes())
"""


def glibc(library: Path) -> tuple[int, ...]:
    """The newest glibc that ``library`` asks for."""
    done = subprocess.run(["nm", "-D", str(library)], capture_output=True, text=True, check=True)
    return max(tuple(map(int, version.split("."))) for version in re.findall(r"@GLIBC_([0-9.]+)", done.stdout))


def logits(model: Path, **environment: str) -> tuple[str, bytes]:
    """The kernel that computed, and the logits."""
    command = [sys.executable, "-c", LOGITS, str(model), *map(str, IDS)]
    done = subprocess.run(command, capture_output=True, env={**os.environ, **environment})
    if done.returncode:
        sys.exit(done.stderr.decode())
    return done.stderr.decode().split()[0], done.stdout


def main() -> None:
    for name in ("librkllmrt.so", "librksim.so"):
        if glibc(BUILD / name) > NEWEST:
            sys.exit(f"{name} needs glibc {glibc(BUILD / name)}, more than {NEWEST}")
        print(f"{name}: glibc {'.'.join(map(str, glibc(BUILD / name)))} or newer")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        smollm2.convert(models.tiny_llama(folder / "source"), folder, DTYPES, name="tiny")
        for dtype in DTYPES:
            model = folder / f"tiny-rk3588-{dtype}" / "model.sim.gguf"
            best, expected = logits(model)
            for kernel in {best, "scalar"}:
                asked = {} if kernel == best else {"RKSIM_KERNEL": kernel}
                used, found = logits(model, RKSIM_LIBRARY=str(BUILD / "librksim.so"), **asked)
                if used != kernel:
                    sys.exit(f"{dtype}: {used} was chosen, not {kernel} as by the library of here")
                if found != expected:
                    sys.exit(f"{dtype}: {kernel} gives other logits than {best} by the library of here")
            print(f"{dtype}: {best} and scalar give the logits of here, CRC-32 {zlib.crc32(expected):08x}")


if __name__ == "__main__":
    main()
