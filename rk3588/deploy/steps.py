"""The kinds of step of a plan, and a plan as text and as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Union

from rk3588.errors import printable

from .release_files import File
from .shell import command


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
class DeploymentPlan:
    """Steps in order. ``bytes`` is what they send at the most (less where a transfer is resumed)."""

    release: str
    steps: tuple[Step, ...]

    @property
    def bytes(self) -> int:
        return sum(step.file.size - step.have for step in self.steps if isinstance(step, Send))


def describe_plan(plan: DeploymentPlan) -> str:
    """The plan as text: what would be run and sent, in order. ``agent`` stands for that of ``board/agent.py``."""
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


def plan_as_json(plan: DeploymentPlan) -> list[dict[str, Any]]:
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
