"""The daemon's engine in tests: over the fake worker, or over the real worker and the simulated runtime."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rkruntime.daemon.engine import WorkerEngine
from rkruntime.daemon.jobs import EngineSettings, Job
from rkruntime.daemon.ticket import Ticket
from rkruntime.model import Model
from rkruntime.settings import BY_NAME, Settings

T = TypeVar("T")
# The same each time, and without end where nothing ends it: a tiny model soon says the same for ever.
GREEDY: dict[str, Any] = {"temperature": 0.0, "repeat_penalty": 1.0, "loop_limit": 0}


def run(scenario: Coroutine[Any, Any, T], limit_s: float = 120) -> T:
    """A scenario in an event loop of its own; a hang fails instead of lasting for ever."""
    return asyncio.run(asyncio.wait_for(scenario, limit_s))


@dataclass(frozen=True)
class Flavour:
    """What stands behind the engine."""

    name: str
    bundle: Path
    library: Path | None = None

    def engine(self, faults: str = "", **settings: Any) -> WorkerEngine:
        command = None if self.library else [sys.executable, str(Path(__file__).with_name("fake_worker.py"))]
        wanted = {"library": self.library, **GREEDY, **settings}
        model = Settings(**{name: wanted.pop(name) for name in list(wanted) if name in BY_NAME})
        env = {"RKSIM_FAULTS": faults, "RKSIM_THREADS": "1"}
        return WorkerEngine(EngineSettings(bundle=self.bundle, model=model, **wanted), command=command, worker_env=env)

    def expected(self, question: str, max_tokens: int) -> str:
        """What the bare binding, without any of this, answers."""
        if self.library is None:
            return f"user={question};"[:max_tokens]
        settings = Settings(library=self.library, max_tokens=max_tokens, **GREEDY)
        with Model(self.bundle, settings, print) as model:
            prompt = model.prompts.chat([{"role": "user", "content": question}])
            with closing(model.answer(prompt)) as answer:
                return "".join(answer)


def job(question: str, max_tokens: int = 12, **more: Any) -> Job:
    return Job(messages=[{"role": "user", "content": question}], max_tokens=max_tokens, **more)


async def text(ticket: Ticket, at_most: int | None = None) -> str:
    """The answer; or its beginning, after which it is closed."""
    parts, tokens = [], 0
    async for piece in ticket.pieces():
        parts.append(piece.text)
        tokens += piece.tokens
        if tokens == at_most:
            await ticket.close()
            break
    return "".join(parts)


async def ask(engine: WorkerEngine, question: str, max_tokens: int = 12, **more: Any) -> str:
    return await text(await engine.submit(job(question, max_tokens, **more)))


async def until(condition: Any, limit_s: float = 60) -> None:
    end = asyncio.get_running_loop().time() + limit_s
    while not condition():
        assert asyncio.get_running_loop().time() < end, "waited in vain"
        await asyncio.sleep(0.01)
