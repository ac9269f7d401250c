"""Logits by their bits, from a process of its own: a library chooses its kernel once, when it is loaded.

Reads jobs as JSON from stdin, ``[{"model": path, "ids": […], "threads": n, "chunk": n, "lora": path}, …]``, and prints
the kernel in use and the SHA-256 of each job's logits.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from rk3588 import hostlib


class Job(NamedTuple):
    model: Path
    ids: list[int]
    threads: int = 1
    chunk: int = 0  # tokens per step of the prefill; 0: the library's default
    lora: Path | None = None


def digest(logits: npt.NDArray[np.float32]) -> str:
    return hashlib.sha256(np.ascontiguousarray(logits).tobytes()).hexdigest()


def run(kernel: str, jobs: list[Job]) -> list[str]:
    """The digests of ``jobs`` as ``kernel`` computes them."""
    text = json.dumps([job._asdict() for job in jobs], default=str)
    program = [sys.executable, "-c", "from tests.digests import main; main()"]
    environment = {**os.environ, "RKSIM_KERNEL": kernel, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(program, input=text, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["kernel"] == kernel
    found: list[str] = answer["digests"]
    return found


def main() -> None:
    jobs: list[dict[str, Any]] = json.load(sys.stdin)
    found = []
    for job in jobs:
        with hostlib.SimModel(job["model"], threads=job["threads"]) as model:
            model.use_lora(job["lora"])
            found.append(digest(model.logits(job["ids"], chunk=job["chunk"])))
    json.dump({"kernel": hostlib.kernel(), "digests": found}, sys.stdout)
