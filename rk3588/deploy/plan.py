"""The plan of a deployment: facts and state × what is wanted → steps. Pure; ``apply`` runs exactly these.

A step either is needed or is not there: where a board already is as wanted, its plan is empty.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import PurePosixPath
from typing import Any, Union

from rk3588.errors import DeployError, UsageError, printable

from .facts import Facts
from .layout import RULE, USER
from .release import Release
from .release_files import File
from .shell import command
from .sizes import LEAST_LOAD_SECONDS
from .units import npu_group

_PREFIX = re.compile(r"(/(?!\.{1,2}(/|$))[A-Za-z0-9_.][A-Za-z0-9._-]*){2,40}")  # in units, % and blanks mean something
KEEP = 3
_LATEST = 1e11  # seconds since 1970 that a date may be
SLOWEST_DISK = 10e6  # bytes/s


@dataclass(frozen=True)
class State:
    """What the agent found below the prefix; empty on a board that never saw a deployment."""

    exists: bool = False
    releases: Mapping[str, Any] = field(default_factory=dict)  # id → manifest, files (path → SHA-256), …
    incoming: Mapping[str, Any] = field(default_factory=dict)  # id → files (path → SHA-256), parts (path → size)
    current: str = ""
    unproven: Mapping[str, str] = field(default_factory=dict)
    units: bool = False  # as the current release has them
    rule: str = ""
    user: bool = False
    groups: tuple[str, ...] = ()
    keys: bool = False
    active: bool = False
    ready: bool = False

    @classmethod
    def from_answer(cls, answer: Mapping[str, Any]) -> State:
        """DeployError for what no agent of ours says."""
        known = {item.name: answer[item.name] for item in fields(cls) if item.name in answer}
        like = {**vars(cls()), "groups": []}
        sound = all(isinstance(value, type(like[name])) for name, value in known.items())
        sound = sound and all(map(_sound_row, known.get("releases", {}).values()))
        if not sound or not all(map(_sound_arrival, known.get("incoming", {}).values())):
            raise DeployError("the board describes its releases in a way that makes no sense: does python3 run there?")
        return cls(**{**known, "groups": tuple(known.get("groups", ()))})


def _sound_row(row: Any) -> bool:
    shape: dict[str, type] = {"manifest": dict, "files": dict, "proven": int}
    if not isinstance(row, dict) or not all(isinstance(row.get(key), kind) for key, kind in shape.items()):
        return False
    deployed, listed = row.get("deployed"), row["manifest"].get("files", {})
    dated = isinstance(deployed, (int, float)) and 0 <= deployed < _LATEST
    patient = isinstance(row["manifest"].get("load_seconds", 0), int)
    hashed = _all(str, row["files"]) and _all(dict, listed) and all(map(_sound_file, listed.values()))
    return dated and patient and hashed


def _sound_file(entry: Mapping[str, Any]) -> bool:
    return isinstance(entry.get("sha256"), str) and isinstance(entry.get("size"), int)


def _sound_arrival(row: Any) -> bool:
    return isinstance(row, dict) and _all(str, row.get("files")) and _all(int, row.get("parts"))


def _all(kind: type, values: Any) -> bool:
    return isinstance(values, dict) and all(isinstance(value, kind) for value in values.values())


@dataclass(frozen=True)
class Command:
    """A command line. ``agent``: words for the agent, which is sent along. ``seconds``: how long it may take."""

    line: str
    why: str
    root: bool = True
    stdin: bytes = b""
    agent: bool = False
    seconds: float = 60.0


@dataclass(frozen=True)
class Send:
    """A file to send; ``have`` bytes of it may be there already."""

    file: File
    path: str
    root: bool = True
    have: int = 0

    @property
    def line(self) -> str:
        return command("receive", self.path, self.file.size, self.file.sha256, f"{self.file.mode:o}")


@dataclass(frozen=True)
class Activate:
    """Switch to a release, with a proof and a way back."""

    line: str
    why: str
    seconds: float
    root: bool = True


Step = Union[Command, Send, Activate]


@dataclass(frozen=True)
class Plan:
    """Steps in order. ``bytes`` is what they send at the most (less where a transfer is resumed)."""

    release: str
    steps: tuple[Step, ...]

    @property
    def bytes(self) -> int:
        return sum(step.file.size - step.have for step in self.steps if isinstance(step, Send))


def check_prefix(prefix: str) -> str:
    """``prefix`` if releases may lie there; UsageError otherwise."""
    if not _PREFIX.fullmatch(prefix):
        raise UsageError(f"--prefix {prefix!r}: give a path of letters, digits, dots and dashes, as in /opt/rkchatd")
    return prefix


def plan(facts: Facts, state: State, release: Release, prefix: str, keep: int = KEEP) -> Plan:
    """All steps from what is there to ``release`` serving, the last ``keep`` releases kept to go back to."""
    check_prefix(prefix)
    systemd = facts.systemd is not None
    whole = _is_whole(state, release)
    steps = [
        *(_user(facts, state) if systemd else ()),
        *_keys(state, prefix, systemd),
        *(() if whole else _content(state, release, prefix, systemd)),
        *(_rule(state, release) if systemd else ()),
        *_activation(facts, state, release, prefix, whole, systemd),
        *_pruning(state, release, prefix, keep, systemd),
    ]
    return Plan(release.id, tuple(steps))


def rollback(state: State, prefix: str, systemd: bool, to: str | None = None) -> Plan:
    """Back to release ``to``, or to the one before; DeployError if there is none, UsageError if ``to`` names none."""
    known = latest_first(state)
    others = [name for name in known if name != state.current and state.releases[name]["proven"]]
    if to is not None:
        others = [name for name in known if name.startswith(to)]
        if len(others) != 1:
            raise UsageError(f"there is no one release {to!r} on the board; there are: {', '.join(known) or 'none'}")
    if not others:
        raise DeployError("there is no other release on the board that ever answered a chat")
    manifest = state.releases[others[0]]["manifest"]
    damaged = [path for path in _files(state, others[0]) or ["release.json"] if not _file_ok(state, others[0], path)]
    if damaged:
        raise DeployError(f"{damaged[0]} of release {others[0]} has changed on the board: deploy that bundle again")
    if others[0] == state.current and state.ready:
        return Plan(others[0], ())
    patience = manifest.get("load_seconds", LEAST_LOAD_SECONDS)
    return Plan(others[0], (_activate(prefix, others[0], patience, systemd, ""),))


def _is_whole(state: State, release: Release) -> bool:
    there = state.releases.get(release.id)
    return there is not None and all(there["files"].get(file.path) == file.sha256 for file in release.files)


def _files(state: State, name: str) -> Mapping[str, Any]:
    """Of a release, as its manifest has them; none where that is damaged."""
    files = state.releases[name]["manifest"].get("files")
    return files if isinstance(files, dict) else {}


def _file_ok(state: State, name: str, path: str) -> bool:
    wanted = _files(state, name).get(path, {}).get("sha256")
    return wanted is not None and bool(state.releases[name]["files"].get(path) == wanted)


def _user(facts: Facts, state: State) -> Iterator[Step]:
    group = npu_group(facts)
    if not state.user:
        line = command("useradd", "--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin", USER)
        yield Command(line, "the daemon's own user")
    if group != USER and group not in state.groups:
        yield Command(command("usermod", "-aG", group, USER), "which may open the NPU")


def _keys(state: State, prefix: str, systemd: bool) -> Iterator[Step]:
    if not state.exists:
        yield Command(command("mkdir", "-p", "-m", "755", prefix), "where releases go", root=systemd)
    if not state.keys:
        owner = f" && chown {USER}: {{0}}.new" if systemd else ""
        make = "(umask 077 && head -c 24 /dev/urandom | base64 | tr '+/' '-_' | sed 's/^/first:/' > {0}.new)"
        line = f"{make}{owner} && sync {{0}}.new && mv {{0}}.new {{0}}".format(command(f"{prefix}/keys"))
        yield Command(line, "the API's first key, made on the board", root=systemd)


def _content(state: State, release: Release, prefix: str, systemd: bool) -> Iterator[Step]:
    """The release's files: those already there somewhere are linked, the others sent."""
    folder = f"{prefix}/incoming/{release.id}"
    arrived = state.incoming.get(release.id, {"files": {}, "parts": {}})
    folders = {str(PurePosixPath(f"{folder}/{file.path}").parent) for file in release.files} | {f"{prefix}/releases"}
    yield Command(command("mkdir", "-p", *sorted(folders)), "room for the release", root=systemd)
    stray = [path for path in arrived["files"] if path not in {file.path for file in release.files}]
    wrong = [file.path for file in release.files if arrived["files"].get(file.path) not in (None, file.sha256)]
    if stray or wrong:
        line = command("rm", "-f", "--", *(f"{folder}/{path}" for path in sorted({*stray, *wrong})))
        yield Command(line, "files that do not belong to it", root=systemd)
    places = _places(state, prefix)
    for file in release.files:
        if arrived["files"].get(file.path) == file.sha256:
            continue
        path = f"{folder}/{file.path}"
        if file.sha256 in places:
            yield Command(command("ln", "--", places[file.sha256], path), "there already, by its hash", root=systemd)
        else:
            yield Send(file, path, systemd, min(arrived["parts"].get(file.path, 0), file.size))
            places[file.sha256] = path
    text = release.text.encode()
    line = command("finish", prefix, release.id)
    seconds = 300 + release.size / SLOWEST_DISK
    yield Command(line, "hashed once more, it becomes a release", root=systemd, stdin=text, agent=True, seconds=seconds)


def _places(state: State, prefix: str) -> dict[str, str]:
    """Where a file of each hash lies on the board. What a damaged release has is what its files are now."""
    found: dict[str, str] = {}
    for kind, folders in (("releases", state.releases), ("incoming", state.incoming)):
        for name, content in folders.items():
            for path, digest in content["files"].items():
                found.setdefault(digest, f"{prefix}/{kind}/{name}/{path}")
    return found


def _rule(state: State, release: Release) -> Iterator[Step]:
    if release.rule and state.rule != release.rule:
        line = f"cat > {command(RULE)}.new && mv {command(RULE)}.new {command(RULE)}"
        line = f"{command('mkdir', '-p', str(PurePosixPath(RULE).parent))} && {line}"
        yield Command(line, "the NPU's device files for the daemon", stdin=release.rule.encode())
        reload = "udevadm control --reload && udevadm trigger --subsystem-match=drm --subsystem-match=dma_heap"
        line = f"if [ -S /run/udev/control ]; then {reload} && udevadm trigger --sysname-match=rknpu; fi"
        yield Command(line, "now, not at the next boot")


def _activation(
    facts: Facts, state: State, release: Release, prefix: str, whole: bool, systemd: bool
) -> Iterator[Step]:
    if whole and state.current == release.id and state.ready and state.active and state.units and not state.unproven:
        return
    seconds = release.manifest["load_seconds"]
    # Two models at a time only where both fit; an NPU has one user, so there the old one has to go first.
    model = max((file.size for file in release.files), default=0)
    simulated = release.manifest["runtime"] == "sim"
    fits = 2 * model + (512 << 20) < facts.memory.get("MemAvailable", 0)
    beside = "side-by-side" if simulated and fits and state.ready and state.current not in ("", release.id) else ""
    yield _activate(prefix, release.id, seconds, systemd, beside)


def _activate(prefix: str, name: str, seconds: int, systemd: bool, beside: str) -> Activate:
    agent = f"{prefix}/releases/{name}/agent.pyz"
    words = ["python3", "-I", agent, "activate", prefix, name, *([beside] if beside else [])]
    why = "tried beside the old one, then" if beside else "the old one stops,"
    # Its own proof, the old one's when it has to come back, and a trial beside it.
    longest = 3.0 * seconds + 120
    return Activate(command(*words), f"{why} it serves; goes back unless it answers a chat", longest, systemd)


def _pruning(state: State, release: Release, prefix: str, keep: int, systemd: bool) -> Iterator[Step]:
    """Old releases, and what failed deployments left. The one before stays, unless it could not serve again."""
    before = [state.current] if state.current and _may_serve_again(state, state.current) else []
    kept = list(dict.fromkeys((release.id, *before)))
    kept += [name for name in latest_first(state) if name not in kept and _may_serve_again(state, name)]
    surplus = [f"{prefix}/releases/{name}" for name in sorted(state.releases) if name not in kept[: max(keep, 2)]]
    surplus += [f"{prefix}/incoming/{name}" for name in sorted(state.incoming) if name != release.id]
    damaged = state.releases.get(release.id) is not None and not _is_whole(state, release)
    if damaged:
        surplus.append(f"{prefix}/incoming/.damaged-{release.id}")
    if surplus:
        yield Command(command("rm", "-rf", "--", *surplus), "no longer needed", root=systemd, seconds=300)


def _may_serve_again(state: State, name: str) -> bool:
    """Whether it could be gone back to: it answered once, and no file of it has changed."""
    files = _files(state, name)
    return bool(state.releases[name]["proven"] and files) and all(_file_ok(state, name, path) for path in files)


def latest_first(state: State) -> list[str]:
    """Releases, the last to have proved itself first, those that never did at the end."""
    return sorted(state.releases, key=lambda name: (-state.releases[name]["proven"], -state.releases[name]["deployed"]))


def describe(plan: Plan) -> str:
    """The plan as text: what would be run and sent, in order. ``agent`` stands for the program of ``deploy.agent``."""
    lines = []
    for step in plan.steps:
        if isinstance(step, Send):
            resumed = f", {step.have} of them there" if step.have else ""
            lines.append(f"{_mark(step)} agent {step.line}  # {step.file.size} bytes{resumed}")
        else:
            agent = "agent " if isinstance(step, Command) and step.agent else ""
            lines.append(f"{_mark(step)} {agent}{step.line}  # {step.why}")
    return printable("\n".join(lines))


def _mark(step: Step) -> str:
    return "#" if step.root else "$"


def as_json(plan: Plan) -> list[dict[str, Any]]:
    return [
        {
            "command": step.line,
            "root": step.root,
            "bytes": step.file.size - step.have if isinstance(step, Send) else 0,
            **({"stdin": step.stdin.decode()} if isinstance(step, Command) and step.stdin else {}),
            "by": "agent" if isinstance(step, Send) or (isinstance(step, Command) and step.agent) else "sh",
        }
        for step in plan.steps
    ]


def state_from_json(text: str) -> State:
    """The agent's answer to ``state``."""
    return State.from_answer(json.loads(text))
