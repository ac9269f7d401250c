"""What is found of a board: one judged fact each, and what a deployment asks of it."""

from __future__ import annotations

from dataclasses import dataclass

LEVELS = ("refuse", "warn", "info", "ok")  # worst first


@dataclass(frozen=True)
class Finding:
    """One judged fact. ``npu``: it is about the NPU, so it does not count for the simulated runtime."""

    level: str
    fact: str  # a heading; not the name of a field of Facts
    text: str
    remedy: str = ""
    npu: bool = False


@dataclass(frozen=True)
class Need:
    """What a deployment asks of a board, in bytes: of RAM when the model runs, of disk while it is sent.

    ``context``: tokens that were asked for, and ``context_memory`` their part of the RAM. ``port``: one to take.
    ``pins``: it sets the clocks itself. ``runtime``: the version of the librkllmrt that is to be there; ``toolkit``: of
    the rkllm-toolkit that wrote the model, ``claimed`` where only a name says so; ``model``: all that it is called.
    """

    memory: int = 0
    disk: int = 0
    port: int | None = None
    pins: bool = False
    context: int = 0
    context_memory: int = 0
    runtime: str = ""
    toolkit: str = ""
    claimed: bool = False
    model: str = ""
