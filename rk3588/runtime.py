"""Which librkllmrt.so there is, what it is, and which of a bundle's models it runs: decided here for every command.

Nothing is loaded: a library may be built for another processor.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Optional

from . import compatibility
from .bundle import NPU_MODEL, SIM_MODEL, Bundle, Lora
from .elf import MACHINES
from .errors import BundleError, LibraryError, NoSuchLibrary, UsageError
from .resources import packaged
from .rkllm import RELEASE, TELLING, version_in

VARIABLE = "RKLLM_LIBRARY"
SYSTEM = Path("/usr/lib/librkllmrt.so")
SIM, NPU = "sim", "npu"
# The simulated runtimes, by what they are asked for; and the folders that those of later releases lie in.
TWINS = {SIM: "", "sim-1.2.0": "1.2.0/", "sim-1.2.3": "1.2.3/", "sim-1.3": "1.3.1/"}
_ARTIFACT_KEYS = {SIM: "sim", NPU: "rk3588"}  # what a manifest calls what each runs
_MODELS = {SIM: SIM_MODEL, NPU: NPU_MODEL}
_MOST_BYTES = 256 << 20  # Rockchip's has 7 MB
_MACHINES = {number: MACHINES[number] for number in (62, 183)}  # that Rockchip's and ours are built for
_SAME_MACHINE = {"amd64": "x86_64", "arm64": "aarch64"}
_STRINGS = re.compile(
    rb"(?:rkllm-runtime|librkllmrt) version: [0-9.]+(?:b[0-9]+)?|rkllm_[a-z_]+|rksim_[a-z_]+|GLIBC_2\.\d{1,4}(?!\d)"
)
_SIMULATED = re.compile(rb"RKSIM_|rksim_")


@dataclass(frozen=True)
class Library:
    """A shared library on this host: ``version`` "1.1.1", or "1.1" where only its functions tell."""

    path: Path
    machine: str
    version: str
    simulated: bool
    glibc: tuple[int, int]  # the newest it asks for


class Choice(NamedTuple):
    """A library and the model of a bundle that it runs. ``kind``: SIM or NPU."""

    kind: str
    library: Path
    model: Path

    @property
    def simulated(self) -> bool:
        return self.kind == SIM

    def __str__(self) -> str:
        where = "simulated, no NPU is used" if self.simulated else "on the NPU"
        return f"{where}: {self.model.name} with {self.library}"

    def facts(self) -> dict[str, Any]:
        """For JSON."""
        return {"runtime": self.kind, "model_file": self.model.name}


def choose(bundle: Bundle, asked: Optional[Path] = None) -> Choice:
    """What runs ``bundle`` here. The library decides: Rockchip's runs model.rkllm, the simulated one the other.

    ``asked``, or else RKLLM_LIBRARY, says which. Otherwise it is Rockchip's where it is installed and the bundle has a
    model for it, and else the simulated one. LibraryError, BundleError: there is none, or it cannot run the bundle;
    UsageError where that is ``asked``.
    """
    library = find(asked, npu=_ARTIFACT_KEYS[NPU] in bundle.manifest["artifacts"], sim=bundle.sim_model is not None)
    kind = SIM if is_simulated(library) else NPU
    model = model_for(bundle, kind)
    if model is None:
        other = NPU if kind == SIM else SIM
        if model_for(bundle, other) is None:
            raise BundleError(f"{bundle.path} has no model that librkllmrt could load: convert it again")
        what = "the simulated runtime, which does not run it" if kind == SIM else "Rockchip's, for an NPU"
        way = "--target rk3588" if kind == NPU else "--target sim"
        wrong = BundleError if asked is None else UsageError  # only then is it the call that asks for what cannot be
        raise wrong(
            f"{bundle.path} has only {_MODELS[other]}, and {library} is {what}: choose another library (--library or "
            f"{VARIABLE}), or convert the model again with {way}"
        )
    if kind == NPU:
        _check_pairing(bundle, library)
    return Choice(kind, library, model)


def _check_pairing(bundle: Bundle, library: Path) -> None:
    """LibraryError where this runtime cannot load the bundle's model: it may say that it did, and abort at the first
    prompt. What only a name claims of a model is not enough to refuse it."""
    wrote = compatibility.toolkit_of(bundle)
    if wrote is None or wrote.claimed:
        return
    found = compatibility.pairing(read(library).version, wrote.release)
    if found.level == "refuse":
        able = " or ".join(compatibility.runtimes_for(wrote.release))
        raise LibraryError(f"{library}: {found.text}: give librkllmrt {able} (--library or {VARIABLE})")


def find(asked: Optional[Path] = None, *, npu: bool = False, sim: bool = True) -> Path:
    """Path of a librkllmrt.so: ``asked``, else RKLLM_LIBRARY, else what runs a model for ``npu`` or ``sim`` here."""
    said = asked or os.environ.get(VARIABLE)
    if said:
        path = simulated(str(said)) if is_twin(str(said)) else Path(said)
        if not path.is_file():
            where = "" if asked else f" (from {VARIABLE})"
            kind = NoSuchLibrary if asked else LibraryError
            raise kind(f"there is no library {path}{where}: give the path of a librkllmrt.so")
        return path
    if npu and SYSTEM.is_file() and not (sim and (is_simulated(SYSTEM) or _for_another_machine(SYSTEM))):
        return SYSTEM
    if sim:
        with contextlib.suppress(LibraryError):
            return simulated()
        if SYSTEM.is_file():
            return SYSTEM
    what = f"Rockchip's librkllmrt.so {RELEASE}, which runs .rkllm models," if npu else "librkllmrt.so"
    raise LibraryError(
        f"{what} was not found: install it as {SYSTEM}, or give its path with --library (`library` in the daemon's "
        f"file) or {VARIABLE}"
    )


def simulated(name: str = SIM) -> Path:
    """A simulated runtime of this installation; LibraryError where there is none, as in the zipapp."""
    return packaged(f"lib/{twin_file(name)}")


def twin_file(name: str) -> str:
    """Where that of TWINS lies, in lib/ as in a build; NoSuchLibrary for one that there is not."""
    if name not in TWINS:
        raise NoSuchLibrary(f"there is no simulated runtime {name}: there are {', '.join(TWINS)}")
    return f"{TWINS[name]}librkllmrt.so"


def is_twin(name: str) -> bool:
    """Whether a simulated runtime is meant, and not a file."""
    return name == SIM or re.fullmatch(rf"{SIM}-[0-9.]+", name) is not None


def model_for(bundle: Bundle, kind: str) -> Optional[Path]:
    return bundle.sim_model if kind == SIM else bundle.npu_model


def adapter_for(lora: Lora, kind: str) -> Optional[Path]:
    return lora.sim if kind == SIM else lora.npu


def loras_for(bundle: Bundle, kind: str) -> dict[str, Lora]:
    """The adapters that this kind of runtime can be given."""
    return {name: lora for name, lora in bundle.loras.items() if adapter_for(lora, kind)}


def built_context(bundle: Bundle) -> Optional[int]:
    """Tokens that the model for an NPU was built for, where the manifest says it: its toolkit was told, or whoever made
    it claims it."""
    claims = _table(_table(bundle.manifest.get("adopted")).get("claims"))
    said = (_table(bundle.manifest.get("toolkit")).get("max_context"), _table(claims.get("max_context")).get("value"))
    return next((n for n in said if isinstance(n, int) and not isinstance(n, bool) and n > 0), None)


def _table(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def manifest_for(bundle: Bundle, kind: str) -> dict[str, Any]:
    """The bundle's manifest without what is for the other kind of runtime."""
    other, manifest = _ARTIFACT_KEYS[NPU if kind == SIM else SIM], dict(bundle.manifest)
    left_out = {manifest["artifacts"].get(other)}
    manifest["artifacts"] = {target: name for target, name in manifest["artifacts"].items() if target != other}
    lora = manifest.get("lora")
    if lora and lora["mode"] == "adapter":
        left_out |= {entry["artifacts"].get(other) for entry in lora["adapters"]}
        kept = [_without(entry, other) for entry in lora["adapters"]]
        manifest["lora"] = {**lora, "adapters": [entry for entry in kept if entry["artifacts"]]}
    manifest["files"] = [entry for entry in manifest["files"] if entry["path"] not in left_out]
    return manifest


def _without(entry: dict[str, Any], target: str) -> dict[str, Any]:
    return {**entry, "artifacts": {t: name for t, name in entry["artifacts"].items() if t != target}}


def is_simulated(path: Path) -> bool:
    """Whether a librkllmrt.so is ours: by the names in it. LibraryError where it is none, or cannot be read."""
    data = content(path)
    if data[:4] != b"\x7fELF":
        raise LibraryError(f"{path} is not a shared library: give the path of a librkllmrt.so")
    if TELLING[0].encode() not in data:
        raise LibraryError(f"{path} is no librkllmrt, for it has no {TELLING[0]}: give the path of a librkllmrt.so")
    return _SIMULATED.search(data) is not None


def this_machine() -> str:
    """Its processor, by the name that Linux has for it."""
    return _SAME_MACHINE.get(platform.machine(), platform.machine())


def _for_another_machine(path: Path) -> bool:
    """Built for another processor: a board's library on the machine that deploys it."""
    data = content(path)
    return data[:4] != b"\x7fELF" or _MACHINES.get(int.from_bytes(data[18:20], "little")) != this_machine()


def content(path: Path, what: str = "librkllmrt.so") -> bytes:
    """A library's file; LibraryError for what cannot be one. ``what``: the library that it should be."""
    try:
        if not path.is_file() or path.stat().st_size > _MOST_BYTES:
            raise LibraryError(f"{path} is no {what}: give the path of one")
        return path.read_bytes()
    except OSError as error:
        raise LibraryError(f"cannot read {path}: {error.strerror}") from error


def read(path: Path, what: str = "librkllmrt.so", give: str = "Rockchip's librkllmrt.so") -> Library:
    """What ``path`` is; LibraryError if it is no shared library for a 64-bit machine we know.

    ``what`` it should be, and what to ``give`` where it is none.
    """
    data = content(path, what)
    machine = _MACHINES.get(int.from_bytes(data[18:20], "little")) if data[:4] == b"\x7fELF" else None
    if machine is None:
        raise LibraryError(f"{path} is not a shared library for aarch64 or x86-64: give {give}")
    said = {match.decode() for match in _STRINGS.findall(data)}
    glibc = [(2, int(word[8:])) for word in said if word.startswith("GLIBC_2.")]
    is_ours = _SIMULATED.search(data) is not None
    return Library(path, machine, version_in("\n".join(said)), is_ours, max(glibc, default=(2, 17)))
