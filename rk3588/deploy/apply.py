"""Runs a plan: exactly its steps, in order, and stops at the first that fails."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rk3588.errors import DeployError

from . import agent_client, transfer
from .connection import Connection, Session
from .steps import Activate, Command, DeploymentPlan, Send, Step

_EVENT_SECONDS = 30.0


@dataclass
class Done:
    """What was done to a board so far: steps run, bytes of files sent."""

    commands: int = 0
    bytes_sent: int = 0


class Watcher:
    """Told what happens; the command line draws it. This one is silent."""

    def step(self, step: Step) -> None: ...

    def sent(self, size: int) -> None: ...

    def event(self, what: str) -> None: ...


def apply(
    plan: DeploymentPlan, connection: Connection, done: Done, watcher: Watcher, rate: float | None = None
) -> None:
    """Run all steps; DeployError or ConnectError says which one failed and why, ``done`` how far it came."""
    sender = transfer.Sender(connection, transfer.Throttle(rate), watcher.sent)
    for step in plan.steps:
        watcher.step(step)
        if isinstance(step, Send):
            done.bytes_sent += sender.send(step)
        elif isinstance(step, Activate):
            _activate(step, connection, watcher)
        else:
            _command(step, connection)
        done.commands += 1
    sender.close()


def _command(step: Command, connection: Connection) -> None:
    if step.agent:
        session = agent_client.start(connection, step.line, root=step.root, stdin=step.stdin)
        agent_client.checked_answer(connection, session.finish(step.seconds))
        return
    result = connection.run(step.line, root=step.root, stdin=step.stdin, timeout=step.seconds)
    if result.code:
        raise DeployError(f"{connection.name}: `{step.line.split(' ', 1)[0]}` failed ({step.why}): {result.error_line}")


def _activate(step: Activate, connection: Connection, watcher: Watcher) -> None:
    session = connection.start(step.line, root=step.root)
    try:
        last = _follow(session, step.seconds, watcher)
    except KeyboardInterrupt:
        watcher.event("left")
        raise
    result = session.finish()
    if last is None:
        raise DeployError(f"{connection.name}: the activation broke off: {result.error_line}")
    if last["ok"] is True:
        return
    log = last.get("log")
    words = "".join(f"\n  {line}" for line in log if isinstance(line, str)) if isinstance(log, list) else ""
    said = f" It said:{words}" if words else ""
    what = f"the new release did not prove itself: {last.get('error', 'it does not say why')}"
    raise DeployError(f"{connection.name}: {what}. {_outcome(last)}{said}")


def _outcome(last: dict[str, Any]) -> str:
    if not last.get("current"):
        return "There was none before it, so nothing serves now."
    state = "answers" if last.get("old_healthy") else "does NOT answer either"
    return f"The old release {last['current']} is back and {state}."


def _follow(session: Session, seconds: float, watcher: Watcher) -> dict[str, Any] | None:
    """Read the activation's events; the last one, or None when it broke off."""
    wait: Callable[[], bytes] = lambda: session.read_line(seconds)  # noqa: E731
    for line in iter(wait, b""):
        said = agent_client.json_object(line)
        if said is None:
            continue
        if "ok" in said:
            return said
        watcher.event(str(said.get("step", "")))
    return None
