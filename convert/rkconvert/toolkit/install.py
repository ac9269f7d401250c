"""rkllm-toolkit in virtual environments of its own, under the user's data folder: install, look it up, remove.

Several releases lie side by side, one environment each. ``toolkit.json`` is written last and names them, the one that
is used where nothing else is said at the end; any environment that it does not name is what an interrupted
installation left, and goes with the next one.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from rk3588.errors import TargetError, ToolkitError, UsageError

from . import driver, releases

PYTHONS = ("3.10", "3.11", "3.12", "3.9", "3.8")  # those that Rockchip builds for; the first that is here is taken
RECORD = "toolkit.json"
_STILL_WRITING_S = 20.0  # what an installer that was killed has started may take so long to end
_USUAL = f"rkllm_toolkit-{releases.DEFAULT}-cp310-cp310-linux_x86_64.whl"
GET = f"get {_USUAL} from Rockchip's release (README.md says where)"
INSTALL = "get another from Rockchip's releases, and `rkconvert toolkit install WHEEL`"
_WHEEL = re.compile(r"rkllm_toolkit-(?P<version>[^-]+)-cp3(?P<minor>\d+)-[^-]+-[^-]+\.whl")
_ASK = "import sys; print('{}.{}'.format(*sys.version_info[:2]))"


@dataclass(frozen=True)
class Toolkit:
    """An installed toolkit. ``known``: its wheel is one that this version was written for, by its MD5."""

    environment: str  # the name of its folder
    package: str  # the file or folder it was installed from
    md5: str | None  # None: it came as a folder
    known: bool
    version: str  # what the installed package says of itself
    python: str

    @property
    def interpreter(self) -> Path:
        return home() / self.environment / "bin" / "python"

    @property
    def release(self) -> releases.Release:
        return releases.of(self.version)

    def facts(self) -> dict[str, object]:
        """For manifests: what it is, not where."""
        return {name: value for name, value in asdict(self).items() if name != "environment"}


def home() -> Path:
    data = Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share").expanduser()
    return data / "rk3588" / "toolkit"


def log_file(name: str) -> Path:
    """Where what the toolkit prints is kept, run by run under the same name."""
    state = Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser()
    return state / "rk3588" / "toolkit" / f"{name}.log"


def check_machine() -> None:
    """ToolkitError where Rockchip's wheels cannot run at all."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        raise ToolkitError(
            f"rkllm-toolkit runs on x86-64 Linux only, and this is {platform.machine()} {platform.system()}: convert "
            "for a board on an x86-64 machine (--target sim works here)"
        )


class DamagedRecord(ToolkitError):
    """The record of what is installed cannot be understood; another installation replaces it."""


def all_installed() -> list[Toolkit]:
    """Those whose environments are there; the last is the one that is used where nothing else is said."""
    where = home() / RECORD
    try:
        read = json.loads(where.read_text(encoding="utf-8"))
        found = [Toolkit(**entry) for entry in read.get("toolkits", [read])]
        return [toolkit for toolkit in found if toolkit.interpreter.exists()]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ToolkitError(f"cannot read {where}: {error.strerror}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise DamagedRecord(f"cannot read {where} ({error}): install the toolkit again") from error


def installed(wanted: str | None = None) -> Toolkit | None:
    """The toolkit of release ``wanted``, or the one in use; None when none is. UsageError names those there are."""
    found = all_installed()
    if wanted is None:
        return found[-1] if found else None
    fitting = [toolkit for toolkit in found if wanted in (toolkit.version, toolkit.release.name)]
    if not fitting and found:
        raise UsageError(f"--toolkit {wanted}: installed are {', '.join(t.version for t in found)}; {INSTALL}")
    return fitting[-1] if fitting else None


def needed(wanted: str | None = None) -> Toolkit:
    """The same on a machine that can run it; ToolkitError says how to get one."""
    check_machine()
    found = installed(wanted)
    if found is None:
        raise ToolkitError(f"rkllm-toolkit is not installed: {GET}, then `rkconvert toolkit install WHEEL`")
    return found


@dataclass(frozen=True)
class Package:
    """What to install: its Python, and what is known of it."""

    path: Path
    md5: str | None
    known: bool
    python: Path


def choose(path: Path, wanted: str | None, allow_unknown: bool) -> Package:
    """The package at ``path`` and an interpreter that fits it; UsageError or ToolkitError says what does not fit."""
    check_machine()
    if not path.exists():
        raise UsageError(f"{path} does not exist: {GET}")
    if path.is_dir() and not _sources(path):
        path = _wheel_in(path, wanted)
    if path.is_dir():
        md5, known, needs = None, False, wanted or PYTHONS[0]
        what = f"{path} is a folder of sources, not one of Rockchip's wheels"
    else:
        match = _WHEEL.fullmatch(path.name)
        if match is None:
            raise UsageError(f"{path} is not a wheel of rkllm-toolkit: {GET}")
        if not zipfile.is_zipfile(path):
            size = path.stat().st_size
            raise ToolkitError(f"{path} ({size} bytes) is called as a wheel and is none, or half of one: get it again")
        needs, release = f"3.{match['minor']}", releases.of(match["version"])
        md5, git = _digests(path)
        known = releases.MD5.get(md5) == needs or releases.WHEELS.get(release.name, {}).get(needs) == git
        what = f"{path.name} (MD5 {md5}) is no wheel that this version knows"
        if release.name in releases.UNPUBLISHED:
            what = f"{path.name} (MD5 {md5}) may be Rockchip's, who have published no hash of {release.name}"
        elif not release.known:
            what += f", which are of {', '.join((*releases.WHEELS, *releases.UNPUBLISHED))}"
    if not known and not allow_unknown:
        raise ToolkitError(f"{what}: check where it came from, then give --allow-unknown to use it all the same")
    return Package(path.resolve(), md5, known, find_python(wanted, needs, fixed=not path.is_dir()))


def _sources(folder: Path) -> bool:
    return (folder / "pyproject.toml").is_file() or (folder / "setup.py").is_file()


def _wheel_in(folder: Path, wanted: str | None) -> Path:
    """The wheel in a folder of Rockchip's release for a Python that is here."""
    by_python: dict[str, list[Path]] = {}
    for file in sorted(folder.rglob("rkllm_toolkit-*.whl")):
        match = _WHEEL.fullmatch(file.name)
        if match:
            by_python.setdefault(f"3.{match['minor']}", []).append(file)
    if not by_python:
        raise UsageError(f"{folder} holds no wheel of rkllm-toolkit and no Python package: {GET}")
    asked = _version_of(Path(wanted)) if wanted and "/" in wanted else wanted
    order = [asked] if asked else [*PYTHONS, *by_python]
    usable = [python for python in order if python in by_python and (asked or search_python(python))]
    if not usable:
        raise ToolkitError(
            f"{folder} holds wheels for Python {', '.join(by_python)}, and "
            + (f"not for {asked}" if asked else "none of these is here: install one, or give --python PATH")
        )
    wheels = by_python[usable[0]]
    if len(wheels) > 1:
        listed = ", ".join(str(wheel) for wheel in wheels)
        raise UsageError(f"{folder} holds several wheels for Python {usable[0]}: name one of {listed}")
    return wheels[0]


def find_python(wanted: str | None, needs: str, *, fixed: bool) -> Path:
    """An interpreter: ``wanted`` is one of PYTHONS, a path or None; ``fixed``: only version ``needs`` will do."""
    if wanted is not None and wanted not in PYTHONS:
        path = Path(wanted)
        if not path.exists():
            raise UsageError(f"--python {wanted}: there is no such file; give {' or '.join(PYTHONS)}, or a path")
        found: str | None = _version_of(path)
    else:
        found = wanted or needs
    if fixed and found != needs:
        raise UsageError(f"--python {wanted}: this wheel is for Python {needs}" + (f", not {found}" if found else ""))
    if wanted is not None and wanted not in PYTHONS:
        if found is None:
            raise UsageError(f"--python {wanted} is not a Python interpreter that runs")
        return Path(wanted).absolute()
    assert found is not None
    path_found = search_python(found)
    if path_found is None:
        raise ToolkitError(
            f"Python {found} is not on this machine: install it (pyenv and uv have it), or give --python PATH"
        )
    return path_found


def search_python(version: str) -> Path | None:
    """A Python of this version on PATH, else one of pyenv's or uv's."""
    candidates = [Path(found)] if (found := shutil.which(f"python{version}")) else []
    pyenv = Path(os.environ.get("PYENV_ROOT") or "~/.pyenv").expanduser() / "versions"
    uv = Path(os.environ.get("XDG_DATA_HOME") or "~/.local/share").expanduser() / "uv" / "python"
    for folder, pattern in ((pyenv, f"{version}.*/bin/python"), (uv, f"cpython-{version}.*/bin/python{version}")):
        candidates += sorted(folder.glob(pattern), reverse=True)
    return next((path for path in candidates if _version_of(path) == version), None)


def _version_of(python: Path) -> str | None:
    """ "3.10", or None for what is no interpreter. pyenv's stand-ins on PATH exist for versions that do not run."""
    try:
        done = subprocess.run([str(python), "-I", "-c", _ASK], capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _digests(path: Path) -> tuple[str, str]:
    """MD5, as Rockchip's pages have it, and the id that git has for such a file. They identify, and protect nothing."""
    md5, git = hashlib.md5(usedforsecurity=False), hashlib.sha1(usedforsecurity=False)
    git.update(f"blob {path.stat().st_size}\0".encode())
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            md5.update(block)
            git.update(block)
    return md5.hexdigest(), git.hexdigest()


def install(package: Package, progress: driver.Progress, check: Callable[[], None]) -> Toolkit:
    """Install ``package`` into a new environment and make it the one in use; interrupted, nothing has changed.

    Another of the same version goes, all others stay.
    """
    with _locked() as folder:
        try:
            before = all_installed()
        except DamagedRecord:  # nobody can use what it named
            before = []
        _forget_others(folder, keep=before)
        new = Path(tempfile.mkdtemp(prefix="python-", dir=folder))
        try:
            python = new / "bin" / "python"
            progress("virtual environment", 0, 100)
            _command([str(package.python), "-I", "-m", "venv", str(new)], check)  # -I: a venv.py of the current folder
            progress("packages, which can take minutes", 0, 100)
            beside = ["--find-links", str(package.path.parent)] if package.path.is_file() else []
            pip = [str(python), "-I", "-m", "pip", "--disable-pip-version-check", "install", "--no-input"]
            _command([*pip, *beside, str(package.path)], check)
            outcome = driver.run(python, [], log_file("install"), progress, check)
            found = Toolkit(
                new.name, package.path.name, package.md5, package.known, outcome.version, outcome.python
            )  # fmt: skip
            kept = [*(other for other in before if other.version != found.version), found]
            _record(folder, kept)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise
        _forget_others(folder, keep=kept)
    return found


def remove(wanted: str | None = None) -> bool:
    """Take a release away, or all, with whatever an interrupted installation left; False when there was nothing."""
    if not home().exists():
        return False
    with _locked() as folder:
        gone = installed(wanted) if wanted else None
        kept = [other for other in all_installed() if other != gone] if gone else []
        there = gone is not None if wanted else any(folder.iterdir())
        if kept:
            _record(folder, kept)
        elif there:
            (folder / RECORD).unlink(missing_ok=True)
        if there:
            _forget_others(folder, keep=kept)
        if not any(folder.iterdir()):
            folder.rmdir()
    return there


def _record(folder: Path, toolkits: list[Toolkit]) -> None:
    _write(folder / RECORD, json.dumps({"toolkits": [asdict(toolkit) for toolkit in toolkits]}, indent=2) + "\n")


@contextmanager
def _locked() -> Iterator[Path]:
    """The data folder, for one process at a time."""
    folder = home()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        fd = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise TargetError(f"cannot write to {folder}: {error.strerror}") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield folder
    except BlockingIOError:
        raise ToolkitError(f"another installation is at work in {folder}: wait for its end") from None
    finally:
        os.close(fd)


def _forget_others(folder: Path, keep: list[Toolkit]) -> None:
    for path in folder.iterdir():
        if path.is_dir() and path.name not in {toolkit.environment for toolkit in keep}:
            _remove_tree(path)


def _remove_tree(path: Path) -> None:
    """Also where pip outlives an installation that was killed, and still writes."""
    until = time.monotonic() + _STILL_WRITING_S
    while True:
        try:
            shutil.rmtree(path)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.ENOENT) or time.monotonic() > until:
                raise TargetError(f"cannot remove {error.filename or path}: {error.strerror}") from error
        if not path.exists():
            return
        time.sleep(0.1)


def _command(command: list[str], check: Callable[[], None]) -> None:
    """Run it to its end, asking ``check`` meanwhile; its output is told only when it fails."""
    with tempfile.TemporaryFile("w+") as output:
        # A session of its own: Ctrl-C is ours to handle, and then the whole of it goes.
        # BUILD_CUDA_EXT: auto_gptq, which toolkits from 1.2 on ask for, else wants a CUDA compiler.
        environment = {"BUILD_CUDA_EXT": "0", **os.environ}
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True, env=environment
        )
        try:
            while True:
                check()
                try:
                    code = process.wait(0.2)
                    break
                except subprocess.TimeoutExpired:
                    continue
        except BaseException:
            os.killpg(process.pid, 9)
            process.wait()
            raise
        output.seek(0)
        said = [line.strip() for line in output if line.strip()]
    if code:
        errors = [line for line in said if line.startswith("ERROR")] or said[-1:]
        what = "pip" if "pip" in command else "venv"
        raise ToolkitError(f"{what} failed under {command[0]}: {' '.join(errors)[:500] or f'exit code {code}'}")


def _write(path: Path, text: str) -> None:
    part = path.with_suffix(".part")
    with part.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
