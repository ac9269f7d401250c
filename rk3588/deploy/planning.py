"""Facts and state of a board × what is wanted there → the steps. Pure; ``apply`` runs exactly these.

A step either is needed or is not there: where a board already is as wanted, its plan is empty.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from rk3588.errors import DeployError, UsageError

from .facts import Facts
from .layout import RULE, USER
from .release import Release
from .shell import command
from .sizes import LEAST_LOAD_SECONDS
from .state import BoardState, latest_first
from .steps import Activate, Command, DeploymentPlan, Send, Step
from .units import npu_group

_PREFIX = re.compile(r"(/(?!\.{1,2}(/|$))[A-Za-z0-9_.][A-Za-z0-9._-]*){2,40}")  # in units, % and blanks mean something
KEEP = 3
SLOWEST_DISK = 10e6  # bytes/s


def is_prefix(path: str) -> bool:
    """Whether releases may lie there."""
    return _PREFIX.fullmatch(path) is not None


def check_prefix(prefix: str) -> str:
    """``prefix`` if releases may lie there; UsageError otherwise."""
    if not is_prefix(prefix):
        raise UsageError(f"--prefix {prefix!r}: give a path of letters, digits, dots and dashes, as in /opt/rkchatd")
    return prefix


def plan_release(facts: Facts, state: BoardState, release: Release, prefix: str, keep: int = KEEP) -> DeploymentPlan:
    """All steps from what is there to ``release`` serving, the last ``keep`` releases kept to go back to."""
    check_prefix(prefix)
    systemd = facts.systemd is not None
    whole = _is_complete(state, release)
    steps = [
        *(_user_steps(facts, state) if systemd else ()),
        *_key_steps(state, prefix, systemd),
        *(() if whole else _file_steps(state, release, prefix, systemd)),
        *(_udev_steps(state, release) if systemd else ()),
        *_activation_steps(facts, state, release, prefix, whole, systemd),
        *_cleanup_steps(state, release, prefix, keep, systemd),
    ]
    return DeploymentPlan(release.id, tuple(steps))


def plan_rollback(state: BoardState, prefix: str, systemd: bool, to: str | None = None) -> DeploymentPlan:
    """Back to release ``to``, or to the one before; DeployError if there is none, UsageError if ``to`` names none."""
    known = latest_first(state)
    others = [name for name in known if name != state.current and state.releases[name]["proven"]]
    if to is not None:
        others = [name for name in known if name.startswith(to)]
        if len(others) != 1:
            what = "more than one release that begins with" if others else "no release"
            raise UsageError(f"there is {what} {to!r} on the board; there are: {', '.join(known) or 'none'}")
    if not others:
        raise DeployError("there is no other release on the board that ever answered a chat")
    manifest = state.releases[others[0]]["manifest"]
    listed = _listed_files(state, others[0]) or ["release.json"]
    damaged = [path for path in listed if not _is_unchanged(state, others[0], path)]
    if damaged:
        raise DeployError(f"{damaged[0]} of release {others[0]} has changed on the board: deploy that bundle again")
    if others[0] == state.current and state.ready:
        return DeploymentPlan(others[0], ())
    patience = manifest.get("load_seconds", LEAST_LOAD_SECONDS)
    return DeploymentPlan(others[0], (_activate(prefix, others[0], patience, systemd, ""),))


def _is_complete(state: BoardState, release: Release) -> bool:
    there = state.releases.get(release.id)
    return there is not None and all(there["files"].get(file.path) == file.sha256 for file in release.files)


def _listed_files(state: BoardState, name: str) -> Mapping[str, Any]:
    """Of a release, as its manifest has them; none where that is damaged."""
    files = state.releases[name]["manifest"].get("files")
    return files if isinstance(files, dict) else {}


def _is_unchanged(state: BoardState, name: str, path: str) -> bool:
    wanted = _listed_files(state, name).get(path, {}).get("sha256")
    return wanted is not None and bool(state.releases[name]["files"].get(path) == wanted)


def _user_steps(facts: Facts, state: BoardState) -> Iterator[Step]:
    group = npu_group(facts)
    if not state.user:
        line = command("useradd", "--system", "--user-group", "--no-create-home", "--shell", "/usr/sbin/nologin", USER)
        yield Command(line, "the daemon's own user")
    if group != USER and group not in state.groups:
        yield Command(command("usermod", "-aG", group, USER), "the daemon's user may open the NPU")


def _key_steps(state: BoardState, prefix: str, systemd: bool) -> Iterator[Step]:
    if not state.exists:
        yield Command(command("mkdir", "-p", "-m", "755", prefix), "the folder of releases", root=systemd)
    if not state.keys:
        owner = f" && chown {USER}: {{0}}.new" if systemd else ""
        make = "(umask 077 && head -c 24 /dev/urandom | base64 | tr '+/' '-_' | sed 's/^/first:/' > {0}.new)"
        line = f"{make}{owner} && sync {{0}}.new && mv {{0}}.new {{0}}".format(command(f"{prefix}/keys"))
        yield Command(line, "the API's first key, made on the board", root=systemd)


def _file_steps(state: BoardState, release: Release, prefix: str, systemd: bool) -> Iterator[Step]:
    """The release's files: those already there somewhere are linked, the others sent."""
    folder = f"{prefix}/incoming/{release.id}"
    arrived = state.incoming.get(release.id, {"files": {}, "parts": {}})
    folders = {str(PurePosixPath(f"{folder}/{file.path}").parent) for file in release.files} | {f"{prefix}/releases"}
    yield Command(command("mkdir", "-p", *sorted(folders)), "folders for the release", root=systemd)
    stray = [path for path in arrived["files"] if path not in {file.path for file in release.files}]
    wrong = [file.path for file in release.files if arrived["files"].get(file.path) not in (None, file.sha256)]
    if stray or wrong:
        line = command("rm", "-f", "--", *(f"{folder}/{path}" for path in sorted({*stray, *wrong})))
        yield Command(line, "files that do not belong to the release", root=systemd)
    places = _paths_by_hash(state, prefix)
    for file in release.files:
        if arrived["files"].get(file.path) == file.sha256:
            continue
        path = f"{folder}/{file.path}"
        if file.sha256 in places:
            why = "a file that is there already, by its hash"
            yield Command(command("ln", "--", places[file.sha256], path), why, root=systemd)
        else:
            yield Send(file, path, systemd, min(arrived["parts"].get(file.path, 0), file.size))
            places[file.sha256] = path
    text = release.text.encode()
    line = command("finish", prefix, release.id)
    seconds = 300 + release.size / SLOWEST_DISK
    why = "hashed once more, the files become a release"
    yield Command(line, why, root=systemd, stdin=text, agent=True, seconds=seconds)


def _paths_by_hash(state: BoardState, prefix: str) -> dict[str, str]:
    """Where a file of each hash lies on the board. What a damaged release has is what its files are now."""
    found: dict[str, str] = {}
    for kind, folders in (("releases", state.releases), ("incoming", state.incoming)):
        for name, content in folders.items():
            for path, digest in content["files"].items():
                found.setdefault(digest, f"{prefix}/{kind}/{name}/{path}")
    return found


def _udev_steps(state: BoardState, release: Release) -> Iterator[Step]:
    if release.rule and state.rule != release.rule:
        line = f"cat > {command(RULE)}.new && mv {command(RULE)}.new {command(RULE)}"
        line = f"{command('mkdir', '-p', str(PurePosixPath(RULE).parent))} && {line}"
        yield Command(line, "the NPU's device files for the daemon", stdin=release.rule.encode())
        reload = "udevadm control --reload && udevadm trigger --subsystem-match=drm --subsystem-match=dma_heap"
        line = f"if [ -S /run/udev/control ]; then {reload} && udevadm trigger --sysname-match=rknpu; fi"
        yield Command(line, "the NPU's device files now, not at the next boot")


def _activation_steps(
    facts: Facts, state: BoardState, release: Release, prefix: str, whole: bool, systemd: bool
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


def _cleanup_steps(state: BoardState, release: Release, prefix: str, keep: int, systemd: bool) -> Iterator[Step]:
    """Old releases, and what failed deployments left. The one before stays, unless it could not serve again."""
    before = [state.current] if state.current and _can_serve_again(state, state.current) else []
    kept = list(dict.fromkeys((release.id, *before)))
    kept += [name for name in latest_first(state) if name not in kept and _can_serve_again(state, name)]
    surplus = [f"{prefix}/releases/{name}" for name in sorted(state.releases) if name not in kept[: max(keep, 2)]]
    surplus += [f"{prefix}/incoming/{name}" for name in sorted(state.incoming) if name != release.id]
    damaged = state.releases.get(release.id) is not None and not _is_complete(state, release)
    if damaged:
        surplus.append(f"{prefix}/incoming/.damaged-{release.id}")
    if surplus:
        line = command("rm", "-rf", "--", *surplus)
        yield Command(line, "taking away what is no longer needed", root=systemd, seconds=300)


def _can_serve_again(state: BoardState, name: str) -> bool:
    """Whether it could be gone back to: it answered once, and no file of it has changed."""
    files = _listed_files(state, name)
    return bool(state.releases[name]["proven"] and files) and all(_is_unchanged(state, name, path) for path in files)
