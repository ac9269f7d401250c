"""What is to be on the board: one release, named by its content. Pure but for reading the files it is made of.

A release is everything the daemon needs: the bundle, the daemon, both libraries, configuration, units, and the agent
that can switch to it. So a switch of one symlink is a switch of everything, and so is the way back.
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Optional, Union

import yaml

from rk3588 import bundle as bundles
from rk3588 import predict, rkllm, runtime, shape
from rk3588.bundle import Bundle
from rk3588.errors import CheckpointError, DeployError, LibraryError
from rk3588.resources import packaged, source_tree

from .facts import Facts
from .shell import command

PREFIX = "/opt/rkchatd"
USER_PREFIX = ".local/share/rkchatd"  # below the home folder, where there is no systemd
RULE = "/etc/udev/rules.d/70-rkchatd.rules"
USER = "rkchatd"
STATE_DIR = "/var/lib/rkchatd"  # the unit's StateDirectory: loads that took the board down are remembered there
OUR_SETTINGS = ("bundle", "library", "sim_library", "listen", "keys", "state_dir")
PORT = 8080
PYTHON = "/usr/bin/python3"
LOOPBACK, LAN = "127.0.0.1", "0.0.0.0"
_PROGRAMS = 64 << 20  # bytes: daemon, libraries, and room to breathe
SLOWEST_LOAD = 20e6  # bytes/s: an SD card; 3.5 GB were seen to take 17.8 s from better storage
LEAST_LOAD_SECONDS = 90
_KV_AND_RUNTIME = 700 << 20  # bytes beside the weights at context 4096, of a model whose shape is not told
_CROSS = ("aarch64", "x86_64")  # what `make` builds on another machine
_AGENT_PACKAGES = ("rk3588", "rk3588/deploy", "rk3588/deploy/board")
_AGENT_MODULES = ("ground", "files", "service", "activation", "agent")
_AGENT_MAIN = "import sys\nfrom rk3588.deploy.board.agent import main\nmain(sys.argv[1:])\n"
_KEEPER = """\
#!/bin/sh
# Keeps rkchatd running where there is no systemd: started again when it ends, more slowly each time.
delay=1
while :; do
  @COMMAND@
  echo "$?" >> @ENDS@
  [ "$(wc -c < @LOG@)" -lt 5000000 ] || : > @LOG@
  sleep $delay
  [ $delay -ge 60 ] || delay=$((delay * 2))
done
"""


@dataclass(frozen=True)
class File:
    """One file of a release: its path there, and where its bytes are."""

    path: str
    source: Union[Path, bytes]
    size: int
    sha256: str
    mode: int = 0o644


@dataclass(frozen=True)
class Release:
    """Files and manifest (``release.json``) of one release; ``rule`` is the udev rule that goes with it ("": none)."""

    id: str
    manifest: Mapping[str, Any]
    files: tuple[File, ...]
    rule: str

    @property
    def text(self) -> str:
        return json.dumps(self.manifest, indent=1, sort_keys=True, ensure_ascii=False) + "\n"

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)


@dataclass(frozen=True)
class Wish:
    """What the user asks for. ``runtime``: Rockchip's library, or None for the simulated one."""

    bundle: Bundle
    daemon: Path
    runtime: Optional[Path]
    sim_library: Path
    sim_runtime: Optional[Path] = None
    listen: str = LOOPBACK
    port: int = PORT
    pin: bool = True
    patience: Optional[int] = None  # seconds until it has to answer; None: by the model's size
    settings: Mapping[str, Any] = field(default_factory=dict)  # of the daemon, beside those that are ours
    prefix: str = PREFIX


def find_daemon() -> Path:
    """``rkchatd.pyz``: of the package, else what ``make pyz`` built in this source tree."""
    for candidate in (_packaged("rkchatd.pyz"), _built("rkchatd.pyz")):
        if candidate and candidate.is_file():
            return candidate
    if source_tree():
        raise DeployError("rkchatd.pyz is not built yet: run `make pyz`, or give --daemon FILE")
    raise DeployError(
        "rkchatd.pyz is not in this installation, which was made without a network: install rk3588 again with one, or "
        "run `make pyz` in a clone of its sources and give --daemon build/rkchatd.pyz of there"
    )


def find_library(name: str, machine: str) -> Path:
    """Our own library for the board's processor: this machine's, or what ``make aarch64`` built."""
    here = {"amd64": "x86_64", "arm64": "aarch64"}.get(platform.machine(), platform.machine())
    candidates = [_packaged(f"lib/{machine}/{name}"), _built(f"{machine}/{name}")]
    if machine in ("", here):
        candidates.append(_packaged(f"lib/{name}"))
    for candidate in candidates:
        if candidate and candidate.is_file():
            return candidate
    options = {"librksim.so": "--sim-library", "librkllmrt.so": "--sim-runtime"}
    if machine not in _CROSS:
        raise LibraryError(f"there is no {name} for {machine} here: compile it there, and give {options[name]} FILE")
    if source_tree():
        raise LibraryError(f"{name} for {machine} is not built yet: run `make {machine}`, or give {options[name]} FILE")
    needed = ("librksim.so",) if name == "librksim.so" else tuple(options)
    given = " ".join(f"{options[file]} build/{machine}/{file}" for file in needed)
    raise LibraryError(
        f"this installation has {' and '.join(needed)} for {here} only, and the board is {machine}: run "
        f"`make {machine}` in a clone of rk3588's sources and give {given} of there"
    )


def _built(name: str) -> Optional[Path]:
    top = source_tree()
    return top / "build" / name if top else None


def _packaged(name: str) -> Optional[Path]:
    try:
        return packaged(name)
    except LibraryError:
        return None


def agent_zip() -> bytes:
    """The agent as a zip that Python runs; the same bytes for the same sources."""
    folder, out = Path(__file__).parent / "board", io.BytesIO()
    content = {f"{package}/__init__.py": b"" for package in _AGENT_PACKAGES}
    content.update({f"rk3588/deploy/board/{name}.py": (folder / f"{name}.py").read_bytes() for name in _AGENT_MODULES})
    with zipfile.ZipFile(out, "w") as archive:
        for name, source in {**content, "__main__.py": _AGENT_MAIN.encode()}.items():
            archive.writestr(zipfile.ZipInfo(name), source, zipfile.ZIP_DEFLATED)  # ZipInfo: dated 1980
    return out.getvalue()


def build(wish: Wish, facts: Facts) -> Release:
    """The release for this board; DeployError or LibraryError in one sentence if there cannot be one."""
    simulated = wish.runtime is None
    model = model_of(wish.bundle, simulated)
    patience = wish.patience or load_seconds(model.stat().st_size)
    library = _library(wish.runtime or wish.sim_runtime, facts, "--runtime")
    counter = _library(wish.sim_library, facts, "--sim-library")
    if not simulated:
        _check_rockchip(library)
    files = [
        *_bundle_files(wish.bundle, simulated),
        _local("rkchatd.pyz", wish.daemon),
        _local("librkllmrt.so", library.path),
        _local("librksim.so", counter.path),
        _text("agent.pyz", agent_zip()),
        _text("rkchatd.yaml", _configuration(wish, facts)),
        *_service_files(wish, facts, patience),
    ]
    if not zipfile.is_zipfile(wish.daemon):
        raise DeployError(f"{wish.daemon} is no rkchatd.pyz: build it with `make pyz`")
    systemd = facts.systemd is not None
    manifest: dict[str, Any] = {
        "schema": 1,
        "name": wish.bundle.name,
        "dtype": wish.bundle.dtype,
        "runtime": "sim" if simulated else "npu",
        "runtime_version": library.version,
        "model_file": model.name,
        "listen": wish.listen,
        "port": wish.port,
        "pin": wish.pin,
        "settings": dict(wish.settings),
        "service": "systemd" if systemd else "process",
        "user": USER if systemd else facts.user,
        "load_seconds": patience,
        "command": _command(wish, facts),
        "files": {file.path: {"sha256": file.sha256, "size": file.size, "mode": file.mode} for file in files},
    }
    name = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()[:16]
    return Release(name, {"id": name, **manifest}, tuple(files), _rule(facts) if systemd else "")


def load_seconds(model_size: int) -> int:
    """How long a model may take until it answers."""
    return LEAST_LOAD_SECONDS + int(model_size / SLOWEST_LOAD)


def memory_needed(bundle: Bundle, simulated: bool, context: int = 0) -> int:
    """RAM in bytes, roughly: the weights, ``context`` tokens (0: as many as the model has), the runtime."""
    weights: int = model_of(bundle, simulated).stat().st_size
    try:
        sizes = shape.load(bundle.path)
    except CheckpointError:
        return weights + _KV_AND_RUNTIME
    tokens = context or min(rkllm.MAX_CONTEXT, sizes.context or rkllm.MAX_CONTEXT)
    runtime_bytes = int(predict.coefficients()["memory"]["runtime_bytes"])
    return weights + sizes.kv_bytes_per_token * tokens + runtime_bytes


def size_of(bundle: Bundle, simulated: bool) -> int:
    """Bytes of disk that a first deployment of it takes, roughly."""
    kept = runtime.manifest_for(bundle, _kind(simulated))["files"]
    return sum(int(entry["size"]) for entry in kept) + _PROGRAMS


def check_template(bundle: Bundle) -> None:
    """A release proves itself by answering a chat, which without a template it cannot."""
    if bundle.chat_template is None:
        raise DeployError(
            f"{bundle.path} has no {bundles.TEMPLATE}, so the daemon could not chat with it: convert the model again "
            "with --chat-template FILE"
        )


def _kind(simulated: bool) -> str:
    return runtime.SIM if simulated else runtime.NPU


def model_of(bundle: Bundle, simulated: bool) -> Path:
    """The model that this kind of runtime runs; DeployError, in one sentence, for a bundle without one."""
    found = runtime.model_for(bundle, _kind(simulated))
    if found:
        return found
    if simulated:
        raise DeployError(f"{bundle.path} has only a model for an NPU: give --runtime FILE, Rockchip's librkllmrt.so")
    raise DeployError(
        f"{bundle.path} has only a model for the simulated runtime, which no NPU can run: give --runtime sim to run it "
        "on the board's CPU, or a bundle that Rockchip's toolkit converted"
    )


def _library(path: Optional[Path], facts: Facts, option: str) -> runtime.Library:
    assert path is not None
    library = runtime.read(path)
    if facts.machine and library.machine != facts.machine:
        machines = f"built for {library.machine}, the board is {facts.machine}"
        raise LibraryError(f"{path} is {machines}: give the file for {facts.machine} with {option}")
    newest = tuple(int(part) for part in facts.libc.removeprefix("glibc ").split(".") if part.isdigit())
    if facts.libc.startswith("glibc ") and library.glibc > newest:
        raise LibraryError(
            f"{path} needs glibc {library.glibc[0]}.{library.glibc[1]}, the board has {facts.libc[6:]}: give {option}, "
            "built for an older one (make aarch64 builds for 2.28)"
        )
    return library


def _check_rockchip(library: runtime.Library) -> None:
    if library.simulated:
        raise LibraryError(f"{library.path} is the simulated runtime: say --runtime sim for it")
    if not rkllm.is_spoken(library.version):
        raise LibraryError(
            f"{library.path} is librkllmrt {library.version}; this toolkit speaks {rkllm.RELEASE}: fetch that one (see "
            "README)"
        )


def _local(path: str, source: Path) -> File:
    try:
        return File(path, source, source.stat().st_size, bundles.sha256(source))
    except OSError as error:
        raise DeployError(f"cannot read {source}: {error.strerror}") from error


def _text(path: str, content: Union[str, bytes], mode: int = 0o644) -> File:
    data = content.encode() if isinstance(content, str) else content
    return File(path, data, len(data), hashlib.sha256(data).hexdigest(), mode)


def _bundle_files(bundle: Bundle, simulated: bool) -> list[File]:
    """The bundle without what is for the other kind of runtime; its manifest says so, too."""
    manifest = runtime.manifest_for(bundle, _kind(simulated))
    entries = manifest["files"]
    text = json.dumps(manifest, indent=2, ensure_ascii=False) + "\n"
    if len(entries) == len(bundle.manifest["files"]):
        text = (bundle.path / bundles.MANIFEST).read_text(encoding="utf-8")
    files = [
        File(f"bundle/{PurePosixPath(entry['path'])}", bundle.path / entry["path"], entry["size"], entry["sha256"])
        for entry in entries
    ]
    return [*files, _text(f"bundle/{bundles.MANIFEST}", text)]


def _configuration(wish: Wish, facts: Facts) -> str:
    here = f"{wish.prefix}/current"
    settings: dict[str, Any] = {
        "bundle": f"{here}/bundle",
        "library": f"{here}/librkllmrt.so",
        "sim_library": f"{here}/librksim.so",
        "listen": f"{wish.listen}:{wish.port}",
        "keys": f"{wish.prefix}/keys",
    }
    if facts.systemd is not None:
        settings["state_dir"] = STATE_DIR
    settings.update(wish.settings)
    return "# Written by rk3588 deploy; it belongs to this release.\n" + yaml.safe_dump(settings, sort_keys=False)


def _command(wish: Wish, facts: Facts) -> list[str]:
    here = f"{wish.prefix}/current"
    return [facts.python_path or PYTHON, "-I", f"{here}/rkchatd.pyz", "--config", f"{here}/rkchatd.yaml"]


def _service_files(wish: Wish, facts: Facts, patience: int) -> list[File]:
    if facts.systemd is None:
        keeper = _KEEPER.replace("@COMMAND@", command(*_command(wish, facts)))
        keeper = keeper.replace("@LOG@", command(f"{wish.prefix}/rkchatd.log"))
        return [_text("keep.sh", keeper.replace("@ENDS@", command(f"{wish.prefix}/keeper.ends")), 0o755)]
    # The real runtime moves itself to the big cores; the simulated one would stay where it is put.
    little = facts.little_cpus if wish.runtime else ()
    values = {
        "PREFIX": wish.prefix,
        "PYTHON": facts.python_path or PYTHON,
        "COMMAND": command(*_command(wish, facts)),
        "USER": USER,
        "GROUPS": f"SupplementaryGroups={npu_group(facts)}" if npu_group(facts) != USER else "",
        "LOAD": str(patience),
        "BACKOFF": "RestartSteps=6\nRestartMaxDelaySec=300" if facts.systemd >= 254 else "",
        "AFFINITY": f"CPUAffinity={' '.join(map(str, little))}" if little else "",
    }
    files = [_text("rkchatd.service", filled("rkchatd.service", values))]
    if wish.pin and facts.clocks and wish.runtime is not None:
        script = Path(__file__).parent / "board" / "clocks.py"
        files += [
            _text("rkchatd-clocks.service", filled("rkchatd-clocks.service", values)),
            _text("clocks.py", script.read_bytes()),
        ]
    return files


def npu_group(facts: Facts) -> str:
    """The group that the NPU's device files get: what the board has for it, else the daemon's own."""
    return next((group for group in ("render", "video") if group in facts.known_groups), USER)


def _rule(facts: Facts) -> str:
    return filled("70-rkchatd.rules", {"GROUP": npu_group(facts)})


def filled(name: str, values: Mapping[str, str]) -> str:
    """A template of ``data/`` with @NAME@ replaced; a line that held only an empty one goes."""
    lines = []
    for line in packaged(f"data/{name}").read_text(encoding="utf-8").splitlines():
        filled = line
        for key, value in values.items():
            filled = filled.replace(f"@{key}@", value)
        if filled or not line:
            lines.append(filled)
    return "\n".join(lines) + "\n"
