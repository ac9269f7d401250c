"""A program of its own: is this JSON Schema sound, and does an answer fit it?

Reads {"schema": …, "answer": …} on stdin (without "answer", only the schema is judged), writes {"problem": null or a
sentence}. Nothing is fetched: a reference that leads outside the schema is a problem.
"""

from __future__ import annotations

import functools
import json
import os
import resource
import sys
import zipfile
from collections.abc import Iterator
from typing import Any, NoReturn, Optional

import jsonschema

if sys.version_info < (3, 10):  # its paths in a zipapp take one step at a time, and jsonschema asks for two
    _join = zipfile.Path.joinpath
    zipfile.Path.joinpath = lambda path, *steps: functools.reduce(_join, steps, path)  # type: ignore

_CPU_S = 5
_MEMORY = 256 << 20  # bytes; half of it is the interpreter's own


class _Inside(jsonschema.RefResolver):
    def resolve_remote(self, uri: str) -> NoReturn:
        raise jsonschema.RefResolutionError(f"{uri!r} lies outside the schema")


def problem(schema: Any, *answer: Any) -> Optional[str]:
    """What is wrong with the schema, or with the answer where one is given."""
    try:
        kind = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)
        kind.check_schema(schema)
        resolver = _Inside.from_schema(schema)
        for reference in _references(schema):
            resolver.resolve(reference)
        error = jsonschema.exceptions.best_match(kind(schema, resolver).iter_errors(*answer)) if answer else None
    except jsonschema.SchemaError as wrong:
        return _sentence(wrong)
    except jsonschema.RefResolutionError as wrong:
        return f"a $ref cannot be followed: {wrong}"
    except RecursionError:
        return "it refers to itself without end"
    except MemoryError:
        return "it takes too much memory"
    return None if error is None else _sentence(error)


def _sentence(error: Any) -> str:
    where = "".join(f"[{step!r}]" for step in error.absolute_path)
    message = str(error.message)
    return (f"at {where}: " if where else "") + (message if len(message) <= 300 else message[:299] + "…")


def _references(schema: Any) -> Iterator[str]:
    if isinstance(schema, dict):
        if isinstance(schema.get("$ref"), str):
            yield schema["$ref"]
        for value in schema.values():
            yield from _references(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from _references(value)


def main() -> None:
    os.nice(10)
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_S, _CPU_S))
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    question = json.load(sys.stdin)
    answer = [question["answer"]] if "answer" in question else []
    json.dump({"problem": problem(question["schema"], *answer)}, sys.stdout)


if __name__ == "__main__":
    main()
