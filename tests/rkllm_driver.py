"""Runs tests/rkllm_driver.c over librkllmrt.so, and reads what it printed."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tests.conftest import ROOT

NORMAL, WAITING, FINISH, ERROR, HIDDEN = range(5)
INCLUDE = ROOT / "runtime" / "sim" / "include"
# The same tests over a sanitised library: RKLLM_DRIVER_FLAGS=-fsanitize=address.
EXTRA_FLAGS = os.environ.get("RKLLM_DRIVER_FLAGS", "").split()


@dataclass(frozen=True)
class Call:
    """One callback. ``text`` None: the library gave NULL; ``token`` None: a NULL result."""

    run: int
    state: int
    token: int | None
    text: bytes | None
    thread: str


@dataclass(frozen=True)
class Outcome:
    out: str
    log: str

    @property
    def lines(self) -> list[list[str]]:
        return [line.split() for line in self.out.splitlines()]

    def calls(self, run: int = 1) -> list[Call]:
        found = [f for f in self.lines if f[0] == "cb" and int(f[1]) == run]
        return [Call(run, int(f[2]), None if f[3] == "NULL" else int(f[3]), _text(f[4]), f[5]) for f in found]

    def states(self, run: int = 1) -> list[int]:
        return [call.state for call in self.calls(run)]

    def tokens(self, run: int = 1) -> list[int]:
        return [call.token for call in self.calls(run) if call.state in (NORMAL, WAITING) and call.token is not None]

    def text(self, run: int = 1) -> bytes:
        return b"".join(call.text or b"" for call in self.calls(run))

    def returned(self, call: str) -> list[int]:
        return [int(f[2]) for f in self.lines if f[0] == "ret" and f[1] == call]

    def hidden(self, run: int = 1) -> npt.NDArray[np.float32]:
        (fields,) = [f for f in self.lines if f[0] == "hidden" and int(f[1]) == run]
        return np.frombuffer(bytes.fromhex(fields[4]), np.float32).reshape(int(fields[3]), int(fields[2]))


def _text(field: str) -> bytes | None:
    if field == "NULL":
        return None
    return b"" if field == "-" else bytes.fromhex(field)


def compile_driver(out: Path) -> Path:
    """The C program, as C11 with every warning an error."""
    flags = ["-std=c11", "-Wall", "-Wextra", "-Werror", "-pedantic", "-g", f"-I{INCLUDE}", *EXTRA_FLAGS]
    source = ROOT / "tests" / "rkllm_driver.c"
    subprocess.run(["cc", *flags, str(source), "-o", str(out), "-ldl", "-lpthread"], check=True)
    return out


@dataclass(frozen=True)
class Driver:
    program: Path
    library: Path

    def __call__(self, *commands: str, env: Mapping[str, str] | None = None) -> Outcome:
        """What ``commands`` did. The program itself must end well; a live handle is destroyed at its end."""
        return self.ending(0, *commands, env=env)

    def ending(self, code: int, *commands: str, env: Mapping[str, str] | None = None) -> Outcome:
        """The same of a program that must end with ``code``; negative: killed by that signal."""
        with self.start(*commands, env=env) as process:
            out, log = process.communicate(timeout=120)
        assert process.returncode == code, f"the driver ended with {process.returncode}:\n{log}\n{out[-2000:]!r}"
        return Outcome(out, log)

    def start(self, *commands: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [str(self.program), str(self.library), *commands],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env={**os.environ, "RKSIM_THREADS": "2", **(env or {})},
        )
