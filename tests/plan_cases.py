"""Sixty boards and what a deployment would do to each: facts in, commands out, without a host.

``python -m tests.plan_cases`` writes tests/golden/plans/*.txt anew; look at the difference before it is committed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rk3588.deploy import judge, layout, planning, probes
from rk3588.deploy.facts import Facts, Holder, Library, Node
from rk3588.deploy.findings import Need
from rk3588.deploy.release import Release
from rk3588.deploy.release_files import File
from rk3588.deploy.state import BoardState
from rk3588.deploy.steps import DeploymentPlan, describe_plan
from rk3588.errors import RkError

HERE = Path(__file__).resolve().parent
GOLDEN = HERE / "golden" / "plans"
PREFIX = layout.PREFIX
GIB = 1 << 30


def board(name: str) -> Facts:
    """The facts in ``tests/boards/NAME.json``, which has what the commands printed."""
    return probes.parse(json.loads((HERE / "boards" / f"{name}.json").read_text()))


def file(path: str, text: str, mode: int = 0o644) -> File:
    return File(path, text.encode(), len(text), hashlib.sha256(text.encode()).hexdigest(), mode)


def wanted(text: str = "weights", *extra: File, runtime: str = "npu", systemd: bool = True) -> Release:
    """A small release; its id is that of its files."""
    files = (
        file("bundle/model.rkllm", text),
        file("bundle/rkbundle.json", f"manifest of {text}"),
        file("rkchatd.pyz", "daemon"),
        file("librkllmrt.so", "runtime"),
        file("agent.pyz", "agent"),
        *extra,
    )
    described = {one.path: {"sha256": one.sha256, "size": one.size, "mode": one.mode} for one in files}
    manifest: dict[str, Any] = {"runtime": runtime, "load_seconds": 90, "port": 8080, "files": described}
    name = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()[:16]
    return Release(name, {"id": name, **manifest}, files, "the rule\n" if systemd else "")


def on_board(*releases: Release, current: int = 0, **more: Any) -> BoardState:
    """A board that has these releases, as they were deployed one after the other, and serves one of them."""
    rows = {
        one.id: {
            "manifest": dict(one.manifest),
            "files": {f.path: f.sha256 for f in one.files},
            "deployed": 1000.0 + number,
            "proven": number + 1,
        }
        for number, one in enumerate(releases)
    }
    serving: dict[str, Any] = {
        "exists": True,
        "releases": rows,
        "current": releases[current].id,
        "units": True,
        "rule": releases[current].rule,
        "user": True,
        "groups": ("rkchatd", "render", "video"),
        "keys": True,
        "active": True,
        "ready": True,
    }
    return BoardState(**{**serving, **more})


def changed(state: BoardState, name: str, **files: str | None) -> BoardState:
    """The state with hashes of a release's files replaced; None: the file is gone. ``__`` stands for ``/``."""
    rows = json.loads(json.dumps(state.releases))
    for key, digest in files.items():
        path = next(path for path in rows[name]["files"] if path.replace("/", "__").replace(".", "_") == key)
        if digest is None:
            del rows[name]["files"][path]
        else:
            rows[name]["files"][path] = digest
    return replace(state, releases=rows)


A, B, C, D = (wanted(text) for text in ("weights", "other weights", "third weights", "fourth weights"))
SIM_A, SIM_B = (wanted(text, runtime="sim") for text in ("weights", "other weights"))
PLAIN_A = wanted("weights", systemd=False)
EMPTY = BoardState()
PINS = Need(pins=True)
NEVER = {"manifest": dict(D.manifest), "files": {f.path: f.sha256 for f in D.files}, "deployed": 5000.0, "proven": 0}


@dataclass(frozen=True)
class Case:
    """A board, its state, and the release it is to get; ``act``: instead of the plan of a deployment."""

    facts: Facts
    state: BoardState = EMPTY
    release: Release = A
    simulated: bool = False
    need: Need = PINS
    keep: int = planning.KEEP
    prefix: str = PREFIX
    act: Callable[[BoardState], DeploymentPlan] | None = None


def arriving(*whole: str, **parts: int) -> Mapping[str, Any]:
    """Release A on its way: files that came whole, and sizes of half ones."""
    files = {one.path: one.sha256 for one in A.files if one.path in whole}
    return {A.id: {"files": files, "parts": {path.replace("__", "/"): size for path, size in parts.items()}}}


def cases() -> dict[str, Case]:
    opi, rock, sim = board("orange-pi-5-plus"), board("rock-5b"), board("nspawn")
    return {**_fresh(opi, rock, sim), **_again(opi), **_broken(opi), **_refused(opi, rock), **_back(opi)}


def _fresh(opi: Facts, rock: Facts, sim: Facts) -> dict[str, Case]:
    return {
        "fresh-orange-pi-5-plus-drm": Case(opi),
        "fresh-rock-5b-dma-heap": Case(rock),
        "fresh-simulated-board": Case(sim, release=SIM_A, simulated=True),
        "fresh-no-systemd": Case(board("no-systemd"), release=PLAIN_A, simulated=True, prefix="/home/u/.local/rkchatd"),
        "fresh-as-root": Case(replace(opi, user="root", sudo="root")),
        "fresh-sudo-with-password": Case(replace(opi, sudo="password")),
        "fresh-no-render-group": Case(replace(opi, known_groups=("video",))),
        "fresh-no-group-at-all": Case(replace(opi, known_groups=())),
        "fresh-other-prefix": Case(opi, prefix="/mnt/nvme/rkchatd"),
        "fresh-rk3582": Case(replace(opi, compatible=("radxa,rock-5c-lite", "rockchip,rk3582"), model="ROCK 5C Lite")),
        "fresh-unknown-rk3588": Case(replace(opi, compatible=("someone,new", "rockchip,rk3588"), model="New Board")),
        "fresh-user-is-there": Case(opi, BoardState(user=True, groups=("rkchatd", "render"))),
        "fresh-user-lacks-group": Case(opi, BoardState(user=True, groups=("rkchatd",))),
        "fresh-same-file-twice": Case(opi, release=wanted("weights", file("bundle/copy.bin", "weights"))),
        "fresh-hostile-names": Case(opi, release=wanted("w", file("bundle/a'; rm -rf ~; echo '.txt", "x"))),
        "fresh-space-in-name": Case(opi, release=wanted("w", file("bundle/my model/a b.json", "x"))),
        "fresh-option-like-name": Case(opi, release=wanted("w", file("bundle/-rf", "x"))),
        "fresh-executable-file": Case(opi, release=wanted("w", file("keep.sh", "#!/bin/sh", 0o755))),
    }


def _again(opi: Facts) -> dict[str, Case]:
    tight = replace(opi, memory={"MemTotal": GIB, "MemAvailable": 200 << 20})
    stopped = on_board(SIM_A, ready=False, active=False)
    failed = replace(on_board(A, B, current=1), releases={**on_board(A, B).releases, D.id: NEVER})
    half = {"0123456789abcdef": {"files": {}, "parts": {"x": 5}}}
    return {
        "again-nothing-to-do": Case(opi, on_board(A)),
        "again-service-stopped": Case(opi, on_board(A, active=False, ready=False)),
        "again-not-ready": Case(opi, on_board(A, ready=False)),
        "again-units-edited": Case(opi, on_board(A, units=False)),
        "again-rule-gone": Case(opi, on_board(A, rule="")),
        "again-rule-of-an-older-version": Case(opi, on_board(A, rule="old rule\n")),
        "again-keys-gone": Case(opi, on_board(A, keys=False)),
        "again-group-gone": Case(opi, on_board(A, groups=("rkchatd",))),
        "again-user-gone": Case(opi, on_board(A, user=False, groups=())),
        "again-back-to-an-old-one": Case(opi, on_board(A, B, current=1)),
        "new-model-shares-files": Case(opi, on_board(A), release=B),
        "new-model-sim-side-by-side": Case(opi, on_board(SIM_A), release=SIM_B, simulated=True),
        "new-model-sim-too-little-memory": Case(tight, on_board(SIM_A), release=SIM_B, simulated=True),
        "new-model-sim-old-one-is-down": Case(opi, stopped, release=SIM_B, simulated=True),
        "new-model-only-settings": Case(opi, on_board(A), release=wanted("weights", file("rkchatd.yaml", "lan"))),
        "prune-keep-two": Case(opi, on_board(A, B, C, current=2), release=D, keep=2),
        "prune-keep-three": Case(opi, on_board(A, B, C, current=2), release=D),
        "prune-nothing-at-ten": Case(opi, on_board(A, B, C, current=2), release=D, keep=10),
        "prune-what-never-answered": Case(opi, failed),
        "prune-other-incoming": Case(opi, on_board(A, incoming=half)),
    }


def _broken(opi: Facts) -> dict[str, Case]:
    wrong = {A.id: {"files": {"bundle/model.rkllm": "0" * 64, "stray.txt": "1" * 64}, "parts": {}}}
    whole = [one.path for one in A.files]
    cut = {"old": A.id, "new": B.id, "boot": "x"}
    torn = {**on_board(A, B).releases[A.id], "manifest": {}, "files": {}}
    without = replace(on_board(A, B, current=1), releases={**on_board(A, B).releases, A.id: torn})
    moved = changed(on_board(A), A.id, librkllmrt_so="f" * 64)

    def with_incoming(incoming: Mapping[str, Any]) -> Case:
        return Case(opi, BoardState(exists=True, keys=True, user=True, groups=("render",), incoming=incoming))

    return {
        "resume-nothing-arrived": with_incoming(arriving()),
        "resume-half-a-file": with_incoming(arriving(**{"bundle__model.rkllm": 3})),
        "resume-some-files": with_incoming(arriving("bundle/model.rkllm", "rkchatd.pyz")),
        "resume-all-files": with_incoming(arriving(*whole)),
        "resume-wrong-and-stray-files": with_incoming(wrong),
        "damaged-file-changed": Case(opi, changed(on_board(A), A.id, bundle__model_rkllm="f" * 64)),
        "damaged-file-gone": Case(opi, changed(on_board(A), A.id, librkllmrt_so=None)),
        "damaged-other-release-has-it": Case(opi, changed(on_board(B, A, current=1), A.id, librkllmrt_so="f" * 64)),
        "damaged-file-not-linked-by-its-old-hash": Case(opi, moved, release=B),
        "damaged-manifest-of-another": Case(opi, without, release=C),
        "damaged-manifest-of-the-wanted": Case(opi, without, release=A),
        "rollback-to-a-damaged-manifest": Case(opi, without, act=lambda s: planning.plan_rollback(s, PREFIX, True)),
        "unproven-same-release": Case(opi, on_board(A, B, current=1, unproven=cut), release=B),
        "unproven-other-release": Case(opi, on_board(A, B, current=1, unproven=cut), release=C),
        "unproven-back-to-the-old": Case(opi, on_board(A, B, current=0, unproven=cut), release=A),
    }


def _refused(opi: Facts, rock: Facts) -> dict[str, Case]:
    frigate = Holder(812, "frigate.detecto", "docker 1f03a2b4c5d6")
    volatile = "overlay rw,lowerdir=/media/root-ro,upperdir=/media/root-rw"
    small = replace(rock, memory={"MemTotal": 4 * GIB, "MemAvailable": 3 * GIB})
    return {
        "refuse-mainline-rocket": Case(board("mainline")),
        "refuse-raspberry-pi": Case(board("raspberry-pi-5")),
        "refuse-old-driver": Case(replace(opi, driver="0.9.3")),
        "refuse-no-driver": Case(replace(opi, driver=None, nodes=())),
        "refuse-read-only-root": Case(replace(opi, prefix_fs=volatile)),
        "refuse-disk-too-small": Case(opi, need=Need(disk=900 * GIB, pins=True)),
        "refuse-memory-too-small": Case(small, need=Need(memory=4 * GIB, pins=True)),
        "refuse-port-taken": Case(replace(opi, listening=(22, 8080)), need=Need(port=8080, pins=True)),
        "refuse-musl-and-old-python": Case(replace(opi, libc="musl", python=(3, 8))),
        "refuse-no-sudo": Case(replace(opi, sudo="none", driver=None, as_root=False)),
        "warn-npu-is-used": Case(replace(opi, holders=(frigate, Holder(9, "python3", "rkchatd.service")))),
        "warn-everything": Case(
            replace(
                rock,
                driver="0.9.7",
                heat={"soc-thermal": 91.0},
                ends=("crash", "clean", "crash"),
                clock_error=-63_000_000.0,
                libraries=(Library("/usr/lib/librkllmrt.so", "1.2.1"), Library("/opt/x/librkllmrt.so", "1.1.4")),
                nodes=(Node("/dev/rknpu", 0o600, "root"),),
                memory={"MemTotal": 8 * GIB, "MemAvailable": GIB},
            ),
            need=Need(memory=3 * GIB, pins=True),
        ),
        "sim-on-a-mainline-kernel": Case(board("mainline"), release=SIM_A, simulated=True),
    }


def _back(opi: Facts) -> dict[str, Case]:
    def to(release: str | None) -> Callable[[BoardState], DeploymentPlan]:
        return lambda state: planning.plan_rollback(state, PREFIX, True, release)

    unproven = replace(on_board(A), releases={**on_board(A).releases, D.id: NEVER})
    damaged = changed(on_board(A, B, current=1), A.id, rkchatd_pyz="f" * 64)
    return {
        "rollback-to-the-one-before": Case(opi, on_board(A, B, C, current=2), act=to(None)),
        "rollback-to-a-named-one": Case(opi, on_board(A, B, C, current=2), act=to(A.id[:6])),
        "rollback-to-the-current-one": Case(opi, on_board(A, B, current=1), act=to(B.id)),
        "rollback-no-other": Case(opi, on_board(A), act=to(None)),
        "rollback-only-one-that-never-answered": Case(opi, unproven, act=to(None)),
        "rollback-to-nonsense": Case(opi, on_board(A, B), act=to("zz")),
        "rollback-to-a-damaged-one": Case(opi, damaged, act=to(None)),
    }


def rendered(case: Case) -> str:
    """Findings that matter, then the plan or why there is none."""
    findings = judge.judge(case.facts, case.prefix, case.need, case.simulated)
    told = [finding for finding in findings if finding.level in ("refuse", "warn")]
    lines = [f"{one.level}: {one.fact}: {one.text} -> {one.remedy}" for one in told]
    if not judge.refusals(findings):
        try:
            arguments = (case.facts, case.state, case.release, case.prefix, case.keep)
            made = case.act(case.state) if case.act else planning.plan_release(*arguments)
            lines.append(describe_plan(made) or "nothing to do")
            lines.append(f"{len(made.steps)} steps, {made.bytes} bytes")
        except RkError as error:
            lines.append(f"error: {error}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    GOLDEN.mkdir(parents=True, exist_ok=True)
    for old in GOLDEN.glob("*.txt"):
        old.unlink()
    for name, case in cases().items():
        (GOLDEN / f"{name}.txt").write_text(rendered(case))
