"""Answers in JSON: what the model is told, and whether its answer is what was asked for.

Schemas come from clients, so they are judged in a process of their own (``schemacheck``) that has little time and
memory: a pattern may take for ever, and the daemon must not.
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Optional

from rk3588 import children
from rk3588.errors import AnswerFailed, RequestRefused

from . import logs

CHECK_S = 20.0
_FENCE = re.compile(r"\s*```(?:json|JSON)?\s*\n(.*?)\n?\s*```\s*", re.DOTALL)


@dataclass(frozen=True)
class Format:
    """``schema`` None: any JSON object."""

    schema: Any = None

    @classmethod
    def of(cls, response_format: Mapping[str, Any]) -> Optional[Format]:
        """What ``response_format`` asks for; None for plain text."""
        kind = response_format.get("type", "text") if response_format else "text"
        if kind == "text":
            return None
        if kind == "json_object":
            return cls()
        if kind != "json_schema":
            raise RequestRefused(
                "'response_format' has to have the type text, json_object or json_schema", "response_format"
            )
        inner = response_format.get("json_schema")
        schema = inner.get("schema") if isinstance(inner, dict) else None
        if not isinstance(schema, dict):
            raise RequestRefused(
                "'response_format' of type json_schema has to have its schema, an object, in json_schema.schema",
                "response_format",
            )
        return cls(schema)

    @property
    def instruction(self) -> str:
        if self.schema is None:
            return "Answer with one JSON object and nothing else."
        schema = json.dumps(self.schema, ensure_ascii=False)
        return f"Answer with JSON and nothing else. It has to fit this JSON Schema:\n{schema}"

    async def check_schema(self) -> None:
        """RequestRefused if the schema itself cannot be used."""
        if self.schema is None:
            return
        problem = await _ask({"schema": self.schema})
        if problem:
            raise RequestRefused(f"the schema in 'response_format' cannot be used: {problem}", "response_format")

    async def problem(self, text: str) -> Optional[str]:
        """What is wrong with an answer; None if nothing is."""
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            return f"it is not JSON ({error})"
        if self.schema is None:
            return None if isinstance(value, dict) else "it is not a JSON object"
        return await _ask({"schema": self.schema, "answer": value})


def bare(text: str) -> str:
    """The JSON out of an answer: without white space around it, nor the code fence that models love."""
    fenced = _FENCE.fullmatch(text)
    return (fenced.group(1) if fenced else text).strip()


async def _ask(question: Mapping[str, Any]) -> Optional[str]:
    """The checker's verdict: None, or what is wrong."""
    child = children.python("rkruntime.daemon.schemacheck")
    checker = await asyncio.create_subprocess_exec(
        *child.command, env=child.environment,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
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
