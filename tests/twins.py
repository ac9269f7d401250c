"""The twins of RKLLM 1.2.0, 1.2.3 and 1.3.1, and tests/twin_driver.c compiled over the header of each."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tests.conftest import ROOT
from tests.rkllm_driver import EXTRA_FLAGS, Outcome
from tests.rkllm_headers import HEADERS

RELEASES = ("1.2.0", "1.2.3", "1.3.1")
NEWER = RELEASES[1:]  # with figures, pauses, tools and batches
C11, CXX17 = ("cc", "-x", "c", "-std=c11"), ("c++", "-x", "c++", "-std=c++17")


def library(release: str) -> Path:
    """Beside that of 1.1.1, which RKLLM_LIBRARY names."""
    folder = Path(os.environ["RKLLM_LIBRARY"]).parent
    return folder / "librkllmrt.so" if release == "1.1.1" else folder / release / "librkllmrt.so"


def compile_driver(release: str, out: Path, compiler: tuple[str, ...] = C11) -> Path:
    flags = ["-Wall", "-Wextra", "-Werror", "-pedantic", "-g", f"-DABI={release.replace('.', '')}", *EXTRA_FLAGS]
    source = ROOT / "tests" / "twin_driver.c"
    command = [*compiler, *flags, f"-I{HEADERS[release].parent}", str(source), "-o", str(out), "-ldl", "-lpthread"]
    subprocess.run(command, check=True)
    return out


@dataclass(frozen=True)
class Seen(Outcome):
    """What a driver printed."""

    def sizes(self) -> list[int]:
        """Of the KV cache, each time it was asked for."""
        return [int(line[1]) for line in self.lines if line[0] == "sizes"]

    def items(self, run: int = 1) -> list[tuple[int, int, str]]:
        """Of several results at a time: index, token, text."""
        found = [f for f in self.lines if f[0] == "item" and int(f[1]) == run]
        return [(int(f[2]), int(f[3]), f[4]) for f in found]

    def rows(self, kind: str, run: int = 1) -> npt.NDArray[np.float32]:
        (fields,) = [f for f in self.lines if f[0] == "rows" and int(f[1]) == run and f[2] == kind]
        return np.frombuffer(bytes.fromhex(fields[5]), np.float32).reshape(int(fields[4]), int(fields[3]))

    def perf(self, run: int = 1) -> list[float]:
        """Tokens of prompt and answer, their milliseconds, and memory."""
        (fields,) = [f for f in self.lines if f[0] == "perf" and int(f[1]) == run]
        return [float(word) for word in fields[2:]]

    def errors(self) -> list[str]:
        return [line[9:] for line in self.log.splitlines() if line.startswith("E rkllm: ")]


@dataclass(frozen=True)
class Twin:
    """A driver of one release, over the library of the same or another."""

    release: str
    program: Path
    library: Path
    env: Mapping[str, str] = field(default_factory=dict)

    def __call__(self, *commands: str, env: Mapping[str, str] | None = None, code: int = 0) -> Seen:
        """What ``commands`` did; the program has to end with ``code``."""
        environment = {**os.environ, "RKSIM_THREADS": "2", **self.env, **(env or {})}
        done = subprocess.run(
            [str(self.program), str(self.library), *commands], env=environment, capture_output=True, timeout=120
        )
        out, log = done.stdout.decode(), done.stderr.decode(errors="replace")
        assert done.returncode == code, f"the driver ended with {done.returncode}:\n{log}\n{out[-2000:]}"
        return Seen(out, log)


@cache
def driver(release: str, folder: Path) -> Path:
    """Compiled once a test run."""
    return compile_driver(release, folder / f"driver-{release}")
