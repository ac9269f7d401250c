"""How fast the daemon of a board is: measured on the board by a program that is sent there and leaves nothing."""

from __future__ import annotations

import contextlib
import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Optional

from rk3588 import shape
from rk3588.bench import events, forecast
from rk3588.bench.events import Emit
from rk3588.bench.plan import Plan
from rk3588.boards import BoardType, catalogue
from rk3588.bundle import MANIFEST
from rk3588.errors import BenchError, DeployError, RkError, UsageError, printable

from . import deployment, probes, shell
from .connection import Connection, Session
from .facts import Facts
from .layout import PYTHON

_MODULES = ("bench/plan", "bench/prompts", "bench/events", "bench/completions", "bench/counting", "bench/serving",
            "bench/clients", "bench/on_board", "errors")  # fmt: skip
_BOOT = (
    "import os,sys; b=sys.stdin.buffer; f=os.memfd_create('bench'); os.write(f,b.read(int(b.readline()))); "
    "sys.path.insert(0,'/proc/self/fd/%d'%f); from rk3588.bench.on_board import main; main()"
)
_MOST_MANIFEST = 4 << 20  # bytes
_GRACE_S = 60.0  # beyond what one answer may take


def measure(
    connection: Connection, prefix: Optional[str], plan: Plan, emit: Emit, kind: Optional[BoardType] = None
) -> None:
    """Measure the current release; DeployError where there is none that answers. ``kind``: which board it is, where
    that is known better than by its device tree."""
    emit(events.progress(f"looking at {connection.name}"))
    facts, where = deployment.gather_facts(connection, prefix)
    systemd = facts.systemd is not None
    state = deployment.read_state(connection, where, systemd)
    release = state.releases.get(state.current)
    if release is None:
        raise DeployError(f"nothing is deployed on {connection.name}: `rk3588 deploy BUNDLE --board …` does that")
    if not state.ready:
        raise DeployError(f"the daemon on {connection.name} does not answer: `rk3588 doctor` and its log say why")
    _tell_readings(facts, "before", emit)
    url = f"http://127.0.0.1:{release['manifest'].get('port')}"
    asked = {"url": url, "key": _key(connection, where, systemd), "plan": plan.frame()}
    kind = kind or catalogue().identify(facts.compatible, facts.model)
    predicted = _predicted(connection, where, systemd, plan, kind)
    known = events.about(board=facts.model or None, driver=facts.driver, predicted=predicted)["about"]

    def passed_on(event: dict[str, Any]) -> None:
        if "about" in event:
            event = {"about": {**event["about"], **known}} if isinstance(event["about"], dict) else event
        emit(event)

    _run(connection, facts, asked, plan, passed_on)
    _tell_readings(probes.parse(probes.gather(connection, prefix)), "after", emit)


def _predicted(
    connection: Connection, prefix: str, root: bool, plan: Plan, kind: Optional[BoardType]
) -> Optional[dict[str, Any]]:
    """By the manifest of the bundle there; None where that does not say enough."""
    path = f"{prefix}/current/bundle/{MANIFEST}"
    raw = connection.run(shell.command("head", "-c", _MOST_MANIFEST, path), root=root).out
    try:
        manifest = json.loads(raw.decode("utf-8"))
        return forecast.of_tests(shape.of_manifest(manifest, Path(path)), manifest["dtype"], plan, kind)
    except (RkError, ValueError, RecursionError, LookupError, TypeError, AttributeError):
        return None


def _run(connection: Connection, facts: Facts, asked: Mapping[str, Any], plan: Plan, emit: Emit) -> None:
    program = program_zip()
    session = connection.start(shell.command(facts.python_path or PYTHON, "-I", "-c", _BOOT))
    try:
        # Of several clients nothing is heard before the last has its answers.
        quiet = plan.seconds * max(1, max(plan.clients, default=0) * plan.repetitions) + _GRACE_S
        with contextlib.suppress(BrokenPipeError):  # what it said last tells why it ended
            session.send(f"{len(program)}\n".encode() + program + json.dumps(asked).encode() + b"\n")
        while (event := _next(connection, session, quiet)) != {"done": True}:
            if "failed" in event:
                raise _failure(event["failed"])
            if "readings" not in event:  # the probes see more than the daemon, which is not root
                emit(event)
        session.finish()
    except BaseException:
        session.kill()
        raise


def _next(connection: Connection, session: Session, seconds: float) -> dict[str, Any]:
    line = session.read_line(seconds)
    with contextlib.suppress(ValueError, RecursionError):
        found = json.loads(line)
        if isinstance(found, dict):
            return found
    if line:
        shown = printable(line[:100].decode("utf-8", "replace"))
        raise BenchError(f"{connection.name} answers with something else than what it measures: {shown}")
    raise BenchError(f"{connection.name} broke the measurement off: {session.finish().error_line}")


def _failure(said: Any) -> RkError:
    sound = isinstance(said, dict) and isinstance(said.get("message"), str)
    message = printable(said["message"][:1000]) if sound else "the measurement failed"
    return UsageError(message) if sound and said.get("code") == 2 else BenchError(message)


def _key(connection: Connection, prefix: str, root: bool) -> Optional[str]:
    """The first of the daemon's keys: through stdin it goes to the program, and into no list of processes."""
    lines = connection.run(shell.command("cat", f"{prefix}/keys"), root=root).text.splitlines()
    keys = [line.strip().rpartition(":")[2] for line in lines if line.strip() and not line.startswith("#")]
    return keys[0] if keys else None


def _tell_readings(facts: Facts, when: str, emit: Emit) -> None:
    clocks = [
        {"name": clock.name, "hertz": clock.current * (1000 if clock.name.startswith("policy") else 1),
         "governor": clock.governor}
        for clock in facts.clocks
    ]  # fmt: skip
    heat = dict(list(facts.heat.items())[:32])
    emit(events.readings(when, {"clocks": clocks[:32], "temperatures": heat, "npu_load": facts.npu_load[:200]}))


def program_zip() -> bytes:
    """What runs on the board: the modules of ``rk3588.bench`` that need nothing else."""
    folder, out = Path(__file__).parent.parent, io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for package in ("rk3588", "rk3588/bench"):
            archive.writestr(f"{package}/__init__.py", "")
        for name in _MODULES:
            archive.writestr(f"rk3588/{name}.py", (folder / f"{name}.py").read_bytes(), zipfile.ZIP_DEFLATED)
    return out.getvalue()
