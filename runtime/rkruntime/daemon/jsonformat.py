"""Answers in JSON: what the model is told, and whether its answer is what was asked for.

Schemas come from clients, so they are judged in a process of their own (``schemacheck``) that has little time and
memory: a pattern may take for ever, and the daemon must not.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Optional

from rk3588 import children
from rk3588.errors import AnswerFailed, RequestRefused, Unavailable

from . import logs, strictjson
from .jobs import Message
from .jsonshown import example, remarks
from .strictjson import BadJson

CHECK_S = 20.0
_RETRY_S = 5  # until a checker may be had again
AT_ONCE = 2  # checks; each is a process, of which schemacheck.py bounds time and memory


@dataclass(frozen=True)
class Format:
    """``schema`` None: any JSON object. ``field``: where in the request it was asked for."""

    schema: Optional[Mapping[str, Any]] = None
    field: str = "response_format"

    def instruction(self, messages: Sequence[Message]) -> str:
        """The wording with which SmolLM2 answers best (tests/bench/json_wording.py)."""
        if self.schema is not None:
            told = " ".join(["Answer with JSON like this, and nothing else.", *remarks(self.schema)])
            return f"{told}\n{json.dumps(example(self.schema), ensure_ascii=False)}\nJSON:"
        if any("json" in str(message["content"]).lower() for message in messages):
            return "Answer with one JSON object and nothing else."  # an example would compete with what they ask for
        return 'Answer with a JSON object, like {"answer": ""}, and nothing else.'

    async def check_schema(self, checker: Checker) -> None:
        """RequestRefused if the schema itself cannot be used."""
        if not self.schema:  # none, or one that everything fits
            return
        problem = await checker.ask({"schema": self.schema})
        if problem:
            raise RequestRefused(f"the schema in {self.field!r} cannot be used: {problem}", self.field)

    async def problem(self, text: str, checker: Checker) -> Optional[str]:
        """What is wrong with an answer; None if nothing is."""
        try:
            value = strictjson.parse(text)
        except BadJson as error:
            return f"it is {error}"
        if self.schema is None:
            return None if isinstance(value, dict) else "it is not a JSON object"
        if not self.schema:
            return None
        return await checker.ask({"schema": self.schema, "answer": value})

    @property
    def is_object(self) -> bool:
        """Whether nothing but an object can fit."""
        return self.schema is None or self.schema.get("type") == "object"


class Checker:
    """Judges schemas and answers, no more than ``AT_ONCE`` at a time; whoever asks besides waits."""

    def __init__(self) -> None:
        self.waiting = 0  # requests whose schema is checked, or waits for it
        self._free: Optional[asyncio.Semaphore] = None

    @contextmanager
    def place(self) -> Iterator[None]:
        """Count a request as waiting: from this moment on, and not from when its check begins."""
        self.waiting += 1
        try:
            yield
        finally:
            self.waiting -= 1

    async def ask(self, question: Mapping[str, Any]) -> Optional[str]:
        """The verdict: None, or what is wrong."""
        if self._free is None:  # made here: up to Python 3.9 it belongs to the loop it is made in
            self._free = asyncio.Semaphore(AT_ONCE)
        async with self._free:
            return await _ask(question)


async def _ask(question: Mapping[str, Any]) -> Optional[str]:
    """The checker's verdict: None, or what is wrong."""
    child = children.python("rkruntime.daemon.schemacheck")
    try:
        checker = await asyncio.create_subprocess_exec(
            *child.command, env=child.environment,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
            start_new_session=True,  # a terminal's Ctrl-C must not end what an answer still waits for
        )  # fmt: skip
    except OSError as error:  # no descriptors, no memory
        reason = f"the JSON Schema checker cannot be started ({error.strerror}): try again later"
        raise Unavailable(reason, retry_after_s=_RETRY_S) from error
    try:
        out, err = await asyncio.wait_for(checker.communicate(json.dumps(question).encode()), CHECK_S)
    except asyncio.TimeoutError:
        return f"checking it takes more than {CHECK_S:.0f} s"
    finally:
        if checker.returncode is None:
            checker.kill()
            await checker.wait()
    if checker.returncode and checker.returncode < 0:
        return "checking it takes too much time"
    if checker.returncode:
        # Where it broke; the rest may quote what somebody wrote.
        frames = [line.strip() for line in err.decode("utf-8", "replace").splitlines() if line.startswith("  File")]
        logs.event("schema checker failed", logging.ERROR, traceback=frames)
        raise AnswerFailed("the JSON Schema checker failed: the daemon's log says where")
    problem: Optional[str] = json.loads(out)["problem"]
    return problem
