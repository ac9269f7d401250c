"""One board from facts to a proven release, and the smaller errands: releases, rollback, remove, doctor."""

from __future__ import annotations

import hashlib
import os
import posixpath
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rk3588 import runtime
from rk3588.bundle import Bundle
from rk3588.errors import DeployError, UsageError, printable
from rk3588.rkllm import MAX_CONTEXT
from rk3588.runtime import SIM, twin_file

from . import agent_client, judge, layout, planning, probes, programs, release, release_bundle, shell, sizes
from .apply import Done, Watcher, apply
from .connection import Connection
from .facts import Facts
from .findings import Finding, Need
from .release_spec import ReleaseSpec
from .ssh.tokens import local_user
from .state import BoardState
from .steps import DeploymentPlan

_MARGIN = 64 << 20  # bytes of disk beside what is sent
_STATE_SECONDS = 1800.0  # changed files are hashed anew


@dataclass(frozen=True)
class Options:
    """What may be said of a deployment beside bundle and board. None: as it is on the board, else the default."""

    runtime: Path | None = None  # Rockchip's library
    simulated: bool = False
    twin: str = SIM  # which simulated runtime
    daemon: Path | None = None
    sim_library: Path | None = None
    sim_runtime: Path | None = None
    listen: str | None = None
    port: int | None = None
    pin: bool | None = None
    patience: int | None = None
    settings: Mapping[str, Any] | None = None  # of the daemon
    keep: int = planning.KEEP
    prefix: str | None = None
    rate: float | None = None  # bytes/s


@dataclass(frozen=True)
class Inspection:
    """What was found on a board: its facts, where its releases lie, and which."""

    facts: Facts
    prefix: str
    state: BoardState

    @property
    def systemd(self) -> bool:
        return self.facts.systemd is not None

    @property
    def manifest(self) -> dict[str, object]:
        """Of the current release; empty where there is none."""
        current = self.state.releases.get(self.state.current)
        return dict(current["manifest"]) if current else {}


@dataclass(frozen=True)
class Outcome:
    """What a run came to; ``findings`` are the board's."""

    inspection: Inspection
    plan: DeploymentPlan
    done: Done
    healthy: bool
    findings: tuple[Finding, ...]
    manifest: Mapping[str, Any]  # of the wanted release


def gather_facts(connection: Connection, prefix: str | None = None, thorough: bool = False) -> tuple[Facts, str]:
    """The board's facts, and where its releases lie."""
    if prefix is not None:
        planning.check_prefix(prefix)
    facts = probes.parse(probes.gather(connection, prefix, thorough))
    if not planning.is_prefix(facts.prefix):
        raise UsageError(
            f"{connection.name} would have its releases in {facts.prefix!r}, where a path of letters, digits, dots and "
            "dashes is needed: say another one with --prefix"
        )
    return facts, facts.prefix


def prefix_findings(connection: Connection, facts: Facts, prefix: str) -> list[Finding]:
    """What is wrong with the folders on the way to ``prefix``, if that can be seen: a deployment refuses the same."""
    if facts.python is None or facts.python < judge.OLDEST_PYTHON:
        return []
    try:
        said = agent_client.ask(connection, "check_prefix", prefix, root=facts.systemd is not None)
    except DeployError:
        return []  # no rights: the facts say so
    wrong, _, mend = str(said.get("wrong", "")).rpartition(": ")
    return [Finding("refuse", "prefix", printable(wrong), printable(mend))] if wrong else []


def gather_facts_for_change(connection: Connection, prefix: str | None) -> tuple[Facts, str]:
    """The same for what changes the board, which has one service: DeployError where it runs from another prefix."""
    facts, where = gather_facts(connection, prefix)
    if facts.serves not in ("", where):
        raise DeployError(
            f"the daemon on {connection.name} runs from {facts.serves}: leave --prefix out, or take that one away first"
        )
    _check_python(facts)
    return facts, where


@contextmanager
def board_lock(connection: Connection, prefix: str, systemd: bool, watcher: Watcher) -> Iterator[None]:
    """The board's lock, with this user's name in it."""
    path = "/run/rkchatd-deploy.lock"  # one service, whatever the prefix
    if not systemd:
        place = hashlib.sha256(prefix.encode()).hexdigest()[:16]
        path = f"~/.rkchatd-deploy-{place}.lock"
    who = f"{local_user()}@{socket.gethostname()} (pid {os.getpid()})"
    waiting: Callable[[], None] = lambda: watcher.event("waiting")  # noqa: E731
    with agent_client.hold_lock(connection, path, who, prefix, root=systemd, waiting=waiting):
        yield


def read_state(connection: Connection, prefix: str, systemd: bool) -> BoardState:
    """What lies below the prefix, and whether it answers."""
    rule = layout.RULE if systemd else ""
    answer = agent_client.ask(connection, "state", prefix, rule, root=systemd, seconds=_STATE_SECONDS)
    return BoardState.from_answer(answer)


def check_call(bundle: Bundle, options: Options) -> None:
    """What needs no board to be seen: UsageError for a runtime that is not said or that the bundle is not for; RkError
    for files that are not what their options want."""
    release_bundle.check_template(bundle)
    release_bundle.model_of(bundle, options.simulated)
    if options.runtime is None and not options.simulated:
        raise UsageError(
            "give --runtime FILE, Rockchip's librkllmrt.so for aarch64 (1.1.1, or any from 1.1.0 to 1.3.1), or "
            "--runtime sim"
        )
    if options.runtime is not None:
        programs.read_library(options.runtime, "--runtime")
    if options.sim_library is not None:
        programs.read_library(options.sim_library, "--sim-library")
    if options.sim_runtime is not None:
        programs.read_library(options.sim_runtime, "--sim-runtime")
    if options.daemon is not None:
        programs.check_daemon(options.daemon)


def deploy(
    connection: Connection, bundle: Bundle, options: Options, watcher: Watcher, *, only_plan: bool = False
) -> Outcome:
    """Bring ``bundle`` to the board and let it prove itself; DeployError when the board cannot have it."""
    check_call(bundle, options)
    watcher.event("facts")
    facts, prefix = gather_facts_for_change(connection, options.prefix)
    systemd = facts.systemd is not None
    if only_plan:
        return _plan_release(connection, bundle, options, facts, prefix, watcher)
    with board_lock(connection, prefix, systemd, watcher):
        outcome = _plan_release(connection, bundle, options, facts, prefix, watcher)
        refusals = judge.refusals(list(outcome.findings))
        if refusals:
            told = "; ".join(f"{finding.text}: {finding.remedy}" for finding in refusals)
            raise DeployError(f"{connection.name} cannot have this release: {told}")
        apply(outcome.plan, connection, outcome.done, watcher, options.rate)
        return replace(outcome, healthy=True)  # the plan was empty and it is ready, or the activation proved it


def _check_python(facts: Facts) -> None:
    if facts.python is None or facts.python < judge.OLDEST_PYTHON:
        (finding,) = (item for item in judge.judge(facts, "") if item.fact == "python")
        raise DeployError(f"the board has {finding.text}: {finding.remedy}")


def _plan_release(
    connection: Connection, bundle: Bundle, options: Options, facts: Facts, prefix: str, watcher: Watcher
) -> Outcome:
    watcher.event("state")
    state = read_state(connection, prefix, facts.systemd is not None)
    inspection = Inspection(facts, prefix, state)
    spec = make_spec(bundle, options, inspection)
    _check_template_file(connection, spec, facts)
    # Refused before anything is hashed that may not fit the board, or not each other.
    fits = Need()
    if options.runtime is not None:
        fits = release_bundle.with_runtime(fits, bundle, runtime.read(options.runtime).version)
    early = judge.judge(facts, prefix, fits, simulated=options.simulated)
    steps, manifest = DeploymentPlan("", ()), {}
    if not judge.refusals(early):
        watcher.event("compare")
        wanted = release.build(spec, facts)
        steps, manifest = planning.plan_release(facts, state, wanted, prefix, options.keep), dict(wanted.manifest)
    context = _context(spec)
    need = replace(
        fits,
        memory=sizes.memory_needed(bundle, options.simulated, context),
        context=context,
        context_memory=sizes.context_memory(bundle, context),
        disk=steps.bytes + _MARGIN if steps.bytes else 0,
        port=None if state.active and inspection.manifest.get("port") == spec.port else spec.port,
        pins=spec.pin and facts.systemd is not None,
    )
    findings = judge.judge(facts, prefix, need, simulated=options.simulated)
    return Outcome(inspection, steps, Done(), state.ready and not steps.steps, tuple(findings), manifest)


def _check_template_file(connection: Connection, spec: ReleaseSpec, facts: Facts) -> None:
    """UsageError, before anything is sent, for a template the daemon will not find: a file of the board, or of the
    release where its path is relative."""
    said = spec.settings.get("template")
    if not isinstance(said, str):
        return
    systemd = facts.systemd is not None
    if not said.startswith("/"):
        there = posixpath.normpath(said) in {f"bundle/{entry['path']}" for entry in spec.bundle.manifest["files"]}
    elif systemd and said.startswith(judge.HIDDEN):
        raise UsageError(f"--set template={said}: the service does not see it there: put it elsewhere, as in /etc")
    else:
        there = connection.run(shell.command("test", "-f", said), root=systemd).code == 0
    if not there:
        raise UsageError(
            f"--set template={said}: there is no such file on {connection.name}: give the path of one there, or "
            "convert the model with --chat-template FILE, and it is sent with the bundle"
        )


def _context(spec: ReleaseSpec) -> int:
    """Tokens that the daemon will load the model with, where a setting says it; else 0."""
    said = spec.settings.get("context", 0)
    if not isinstance(said, int):
        return 0  # the daemon says what is wrong with it
    return said if spec.settings.get("beyond_board") is True else min(said, MAX_CONTEXT)


def make_spec(bundle: Bundle, options: Options, inspection: Inspection) -> ReleaseSpec:
    """The options, with what the board has now where nothing else was said, and the files found on this host."""
    listen = options.listen or str(inspection.manifest.get("listen", layout.LOOPBACK))
    said = inspection.manifest.get("port")
    port = options.port or (said if isinstance(said, int) else layout.PORT)
    machine = inspection.facts.machine
    twin = options.sim_runtime or programs.find_library(twin_file(options.twin), machine) if options.simulated else None
    return ReleaseSpec(
        bundle=bundle,
        daemon=options.daemon or programs.find_daemon(),
        runtime=options.runtime,
        sim_library=options.sim_library or programs.find_library("librksim.so", machine),
        sim_runtime=twin,
        listen=listen,
        port=port,
        pin=bool(inspection.manifest.get("pin", True)) if options.pin is None else options.pin,
        patience=options.patience,
        settings=kept_settings(inspection) if options.settings is None else options.settings,
        prefix=inspection.prefix,
    )


def kept_settings(inspection: Inspection) -> Mapping[str, Any]:
    """The daemon's settings as they are on the board."""
    said = inspection.manifest.get("settings")
    return dict(said) if isinstance(said, dict) else {}


def roll_back(
    connection: Connection, prefix: str | None, to: str | None, watcher: Watcher, *, only_plan: bool = False
) -> tuple[DeploymentPlan, Done, BoardState]:
    """Back to another release that is on the board; the state is that of before."""
    watcher.event("facts")
    facts, where = gather_facts_for_change(connection, prefix)
    systemd = facts.systemd is not None
    with board_lock(connection, where, systemd, watcher):
        watcher.event("state")
        state = read_state(connection, where, systemd)
        steps = planning.plan_rollback(state, where, systemd, to)
        done = Done()
        if not only_plan:
            apply(steps, connection, done, watcher)
        return steps, done, state


def remove(connection: Connection, prefix: str | None, watcher: Watcher) -> bool:
    """Take away all that deployments made; False when there was nothing."""
    watcher.event("facts")
    facts, where = gather_facts_for_change(connection, prefix)
    systemd = facts.systemd is not None
    with board_lock(connection, where, systemd, watcher):
        watcher.event("state")
        state = read_state(connection, where, systemd)
        if not (state.releases or state.incoming or state.keys or state.user or state.rule):
            return False
        watcher.event("remove")
        rule, user = (layout.RULE, layout.USER) if systemd else ("", "")
        agent_client.ask(connection, "remove", where, rule, user, root=systemd, seconds=300)
        return True
