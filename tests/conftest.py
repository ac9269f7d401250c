"""What every test may ask for: the two libraries, and bundles of a tiny random model and of SmolLM2."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from rk3588 import resources
from rk3588.errors import LibraryError

if TYPE_CHECKING:
    from tests.rkllm_driver import Driver
    from tests.toolkit_double import Installed
    from tests.twins import Twin

ROOT = Path(__file__).resolve().parent.parent

# NumPy's BLAS reads this when it is loaded: its threads wait for each other in loops, and on a busy machine that is
# most of the time the tests take.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

# A shared machine may stall any example: a deadline would make good tests fail now and then.
settings.register_profile("default", deadline=None)
settings.register_profile("soak", deadline=None, max_examples=2000)
settings.load_profile("default")


def _choose(name: str, variable: str) -> None:
    """Point `variable` at the newer of the installed library and the one in build/dev, unless it is set already."""
    found = [ROOT / "build" / "dev" / name]
    with contextlib.suppress(LibraryError):
        found.append(resources.packaged(f"lib/{name}"))
    there = [path for path in found if path.is_file()]
    if there:
        os.environ.setdefault(variable, str(max(there, key=lambda path: path.stat().st_mtime)))


# A shell starts what it runs in the background with Ctrl-C ignored; the tests of Ctrl-C would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

_choose("librksim.so", "RKSIM_LIBRARY")
_choose("librkllmrt.so", "RKLLM_LIBRARY")


@pytest.fixture(scope="session")
def rksim_library() -> Path:
    return Path(os.environ["RKSIM_LIBRARY"])


@pytest.fixture(scope="session")
def rkllm_library() -> Path:
    return Path(os.environ["RKLLM_LIBRARY"])


@pytest.fixture(scope="session")
def runtimes() -> Mapping[str, Path]:
    """The simulated runtime of each release."""
    from tests import twins

    return {release: twins.library(release) for release in ("1.1.1", *twins.RELEASES)}


@pytest.fixture(scope="session")
def smollm2_bundles() -> Mapping[str, Path]:
    """SmolLM2-135M-Instruct by dtype. Mark the test `model`."""
    from tests import smollm2

    return smollm2.bundles(["w8a8", "w8a8_g128", "w8a8_g512", "fp32"])


@pytest.fixture(scope="session")
def tiny_bundles(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """A random two-layer Llama by dtype: w8a8, w8a8_g128, fp16 and fp32."""
    from tests import models, smollm2

    folder = tmp_path_factory.mktemp("tiny")
    dtypes = ["w8a8", "w8a8_g128", "fp16", "fp32"]
    smollm2.convert(models.tiny_llama(folder / "source"), folder, dtypes, name="tiny")
    return {dtype: folder / f"tiny-rk3588-{dtype}" for dtype in dtypes}


@pytest.fixture(scope="session")
def pyz(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The daemon in one file."""
    path = tmp_path_factory.mktemp("pyz") / "rkchatd.pyz"
    command = [sys.executable, str(ROOT / "runtime" / "tools" / "make_pyz.py"), str(path)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=600)
    return path


@pytest.fixture(scope="session")
def board_watch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Simulated boards end with this run, even if it is killed."""
    from tests import deploying

    with deploying.watched(tmp_path_factory.getbasetemp()):
        yield


@pytest.fixture(scope="session")
def driver(rkllm_library: Path, tmp_path_factory: pytest.TempPathFactory) -> Driver:
    """A compiled C program over librkllmrt.so; call it with its commands."""
    from tests import rkllm_driver

    program = rkllm_driver.compile_driver(tmp_path_factory.mktemp("driver") / "driver")
    return rkllm_driver.Driver(program, rkllm_library)


@pytest.fixture(scope="session")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Twin]:
    """By release, a compiled C program over its header, and its simulated runtime."""
    from tests import twins

    folder = tmp_path_factory.mktemp("twins")
    return lambda release: twins.Twin(release, twins.driver(release, folder), twins.library(release))


@pytest.fixture(scope="session")
def toolkit(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The double of rkllm-toolkit, installed as a user installs the real one, in the best Python for it here."""
    from rkconvert.toolkit.install import PYTHONS, search_python
    from tests import toolkit_double

    version = next((v for v in PYTHONS if search_python(v)), None)
    return toolkit_double.install(tmp_path_factory.mktemp("toolkit"), version or sys.executable)
