"""The sdist, the wheel built from it, and the editable install: each really built and used from a venv of its own."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
RELEASES = ("1.2.0", "1.2.3", "1.3.1")
PACKAGED = (
    "lib/librkllmrt.so", "lib/librksim.so", "boards.yaml", "include/rkllm.h", "py.typed",
    *(f"lib/{release}/librkllmrt.so" for release in RELEASES), *(f"include/{release}/rkllm.h" for release in RELEASES),
)  # fmt: skip
WHEELS = ROOT / "build" / "pyz-wheels"  # what rkchatd.pyz is made of, fetched with this environment

# What a user's program does: finds the files through importlib.resources, and the libraries load.
PROBE = f"""
import ctypes
from importlib import resources
import rk3588.hostlib, rk3588.resources, rk3588.sim, rkconvert, rkruntime
for name in {PACKAGED!r}:
    assert resources.files("rk3588").joinpath(name).is_file(), name
for package in ("rkconvert", "rkruntime"):
    assert resources.files(package).joinpath("py.typed").is_file(), package
for name in ("data/calibration.json", "data/evaluation.json", "toolkit/toolkit_worker.py"):
    assert resources.files("rkconvert").joinpath(name).is_file(), name
assert {{"index.html", "app.js", "vendor/marked.js"}} <= set(rk3588.resources.folder("web"))
assert ctypes.CDLL(str(rk3588.sim.packaged("lib/librkllmrt.so"))).rkllm_init
print(rk3588.__file__, rk3588.resources.packaged("lib/librksim.so"), rk3588.hostlib.kernel(), sep="\\n")
"""


@dataclass(frozen=True)
class Install:
    """A venv with rk3588 in it; its programs run from a folder that holds nothing of the project."""

    venv: Path
    elsewhere: Path

    def run(self, program: str, *args: str) -> str:
        return run([str(self.venv / "bin" / program), *args], self.elsewhere)


def run(command: list[str], cwd: Path, wheels: Path = WHEELS) -> str:
    """stdout of a command that has to work; nothing of this test run's own environment points at the sources."""
    hidden = ("PYTHONPATH", "RKSIM_LIBRARY", "RKLLM_LIBRARY", "COVERAGE_PROCESS_START")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment["PATH"] = str(Path(sys.executable).parent) + os.pathsep + environment["PATH"]
    environment.update({"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels)})
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout


def new_venv(folder: Path) -> Path:
    """A venv that borrows the dependencies of this one, but not its rk3588, so that no network is needed."""
    venv.create(folder, with_pip=False)
    paths = {"base": str(folder), "platbase": str(folder)}
    site = Path(sysconfig.get_path("purelib", "venv", paths))
    # Packages found through a .pth file do not run their own .pth files: an editable rk3588 over there stays unseen.
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    return folder


def pip_install(folder: Path, *what: str) -> None:
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python"), "install", "--quiet"]
    run([*pip, "--no-index", "--no-deps", "--no-build-isolation", "--force-reinstall", *what], folder)


def build(kind: str, source: Path, out: Path, *settings: str, wheels: Path = WHEELS) -> Path:
    command = [sys.executable, "-m", "build", f"--{kind}", "--no-isolation", "--outdir", str(out), *settings]
    run([*command, str(source)], source, wheels)
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("sdist", ROOT, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def source(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What somebody has who unpacked the sdist: wheel and editable install are made from it."""
    folder = tmp_path_factory.mktemp("source")
    run(["tar", "-xf", str(sdist)], folder)  # tarfile's safe filter is younger than some Pythons of 3.11
    (top,) = folder.iterdir()
    return top


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The setting that lets both builds share what is compiled."""
    return f"-Cbuild-dir={tmp_path_factory.mktemp('objects')}"


@pytest.fixture(scope="module")
def wheel(source: Path, objects: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", source, tmp_path_factory.mktemp("wheel"), objects)


@pytest.fixture(scope="module", params=["wheel", "editable"])
def install(
    request: pytest.FixtureRequest, wheel: Path, source: Path, objects: str, tmp_path_factory: pytest.TempPathFactory
) -> Install:
    folder = new_venv(tmp_path_factory.mktemp(f"{request.param}-venv"))
    if request.param == "wheel":
        pip_install(folder, str(wheel))
    else:
        pip_install(folder, objects, "--editable", str(source))
    return Install(folder, tmp_path_factory.mktemp("elsewhere"))


def test_sdist_holds_the_sources_and_nothing_else(sdist: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "README.md", "boards.yaml", "CMakeLists.txt", "runtime/sim/src/model.cpp"} <= names
    tops = {name.partition("/")[0] for name in names}
    assert not tops & {".venv", "build", "out", "dist", ".git", ".mypy_cache"}
    assert not [name for name in names if name.endswith((".so", ".pyc"))]


def test_wheel_holds_three_packages_and_the_licence(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    info = {top for top in tops if top.endswith(".dist-info")}
    assert tops - info == {"rk3588", "rkconvert", "rkruntime"}
    assert {f"rk3588/{name}" for name in (*PACKAGED, "web/index.html", "web/vendor/marked.LICENSE")} <= set(names)
    assert [name for name in names if name.endswith("licenses/LICENSE")]
    # Nothing in it is tied to one Python: the libraries speak C.
    assert "-py3-none-" in wheel.name


def test_wheel_carries_the_daemon_for_boards(wheel: Path, pyz: Path) -> None:
    """Byte for byte what `make pyz` makes of the same sources."""
    assert zipfile.ZipFile(wheel).read("rk3588/rkchatd.pyz") == pyz.read_bytes()


def test_a_wheel_without_network(wheel: Path, source: Path, objects: str, tmp_path: Path) -> None:
    """One without the daemon, and a warning; or none at all, for who says so. Its other files are the same."""
    shutil.rmtree(source / "build" / "pyz-wheels")
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    other = build("wheel", source, tmp_path / "wheel", objects, wheels=nothing)
    names = set(zipfile.ZipFile(wheel).namelist())
    assert names - set(zipfile.ZipFile(other).namelist()) == {"rk3588/rkchatd.pyz"}
    with pytest.raises(AssertionError, match=r"rkchatd\.pyz is not in this wheel(.|\n)*No matching distribution"):
        build("wheel", source, tmp_path / "none", objects, "-Ccmake.define.RKCHATD_PYZ=ON", wheels=nothing)


def test_the_tools_run_and_the_files_are_found(install: Install, source: Path) -> None:
    where, library, kernel = install.run("python", "-c", PROBE).splitlines()
    assert kernel in {"scalar", "avx2", "avx512vnni", "neon"}
    assert Path(library).is_relative_to(install.venv)
    assert Path(where).is_relative_to(install.venv) or Path(where) == source / "rk3588" / "__init__.py"
    for tool in ("rk3588", "rkconvert"):
        assert install.run(tool, "--help").startswith("Usage: ")
