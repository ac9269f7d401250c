"""Short programs over the header of one release alone, on its twin, and on those of the others: there they are told."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.rkllm_driver import EXTRA_FLAGS
from tests.rkllm_headers import HEADERS
from tests.twins import C11, CXX17, library

WAYS = (("filled", "prompt"), ("defaults", "tokens"), ("demo", "prompt"))
Compiled = Callable[[str, tuple[str, ...]], Path]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    folder = tmp_path_factory.mktemp("callers")

    @cache
    def compiled(release: str, compiler: tuple[str, ...]) -> Path:
        out = folder / f"caller-{release}-{compiler[0]}"
        flags = ["-Wall", "-Wextra", "-Werror", "-pedantic", "-g", f"-DABI={release.replace('.', '')}", *EXTRA_FLAGS]
        source = [f"-I{HEADERS[release].parent}", str(ROOT / "tests" / "twin_caller.c"), "-o", str(out), "-ldl"]
        subprocess.run([*compiler, *flags, *source], check=True)
        return out

    return compiled


@pytest.fixture(scope="module")
def model(tiny_bundles: Mapping[str, Path]) -> Path:
    return tiny_bundles["w8a8"] / "model.sim.gguf"


def call(program: Path, release: str, model: Path, way: tuple[str, str]) -> tuple[list[str], str]:
    """What it printed, and the log; it has to end well."""
    environment = {**os.environ, "RKSIM_THREADS": "1"}
    command = [str(program), str(library(release)), str(model), *way]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines(), done.stderr


@pytest.mark.parametrize("compiler", [C11, CXX17], ids=["c11", "c++17"])
@pytest.mark.parametrize("release", HEADERS)
def test_on_its_own_twin(program: Compiled, model: Path, release: str, compiler: tuple[str, ...]) -> None:
    for way in WAYS:
        assert call(program(release, compiler), release, model, way)[0] == ["init 0", "run 0", "tokens 3"]


@pytest.mark.parametrize("release", HEADERS)
def test_on_the_twin_of_another_it_is_told(program: Compiled, model: Path, release: str) -> None:
    """1.2.0 and 1.2.3 have the same parameters: there it is told by its input."""
    for other in HEADERS:
        for way in WAYS if other != release else ():
            said, log = call(program(release, C11), other, model, way)
            alike = {release, other} == {"1.2.0", "1.2.3"}
            assert said == (["init 0", "run -1", "tokens 0"] if alike else ["init -1"]), (other, way)
            (told,) = re.findall(r"looks like a caller of (.*), and this library is (\S+);", log)
            assert told[1] == other and (release[:3] in told[0] or "later" in told[0]), (other, way)
