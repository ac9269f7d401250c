"""Calibration data for rkllm-toolkit: conversations in the model's own template, as ``input`` and ``target``.

A file may be JSON (a list), JSON lines, or plain text. An entry is one of

    {"messages": [{"role": ..., "content": ...}, ...]}    the last message is the assistant's
    {"prompt": ..., "answer": ...}                        or question/instruction, and response/output
    {"input": ..., "target": ...}                         rendered, unless the input shows a special token already

and a text's paragraphs are cut near their middle: the first half is asked, the second answered. ``generating.py`` has
the model write its own.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

from rk3588 import files
from rk3588.errors import BundleError, UsageError

from .rendering import Renderer
from .tokenizers.vocabulary import CONTROL, Vocabulary

BUILT_IN = "built-in"
GENERATE = "generate"
REFERENCE = "fp16"  # what writes generated data
_MOST_GENERATED = 1024
_GENERATE = re.compile(rf"{GENERATE}(?::(.*))?", re.DOTALL)
_MOST = 256 << 20  # bytes of a dataset, of which a few dozen samples are used
_QUESTIONS, _ANSWERS = ("prompt", "question", "instruction"), ("answer", "response", "output", "completion")
_SENTENCE = re.compile(r"(?<=[.!?。！？])\s*")
_FORMS = 'messages, or "prompt" and "answer", or "input" and "target"'

Pair = tuple[str, str]
Entry = tuple[str, Any]  # where it stands in its file, and what stands there


@dataclass(frozen=True)
class Dataset:
    """Rendered samples. ``name`` is the file's, without its folder."""

    name: str
    samples: tuple[Pair, ...]
    made: Mapping[str, Any] = field(default_factory=dict)  # how, where the model wrote it

    @property
    def count(self) -> int:
        return len(self.samples)

    def text(self) -> str:
        """The JSON that rkllm-toolkit reads."""
        rows = [{"input": question, "target": answer} for question, answer in self.samples]
        text = json.dumps(rows, ensure_ascii=False, indent=1) + "\n"
        return text.encode("utf-8", "replace").decode("utf-8")  # without halves of surrogate pairs

    def facts(self) -> dict[str, Any]:
        digest = hashlib.sha256(self.text().encode()).hexdigest()
        return {"name": self.name, "samples": len(self.samples), "sha256": digest, **self.made}


@dataclass(frozen=True)
class Generate:
    """What is asked for. A repeat penalty and a temperature as Rockchip's script has them."""

    samples: int = 32
    max_new_tokens: int = 128
    greedy: int = 5  # tokens at the beginning that are the likeliest, none of which ends the answer
    temperature: float = 0.6
    top_k: int = 40
    top_p: float = 0.9
    repeat_penalty: float = 1.1
    seed: int = 0

    @property
    def count(self) -> int:
        return self.samples

    @property
    def name(self) -> str:
        return GENERATE

    def __str__(self) -> str:
        """As it is typed."""
        return f"{GENERATE}:{self.samples}"

    def facts(self) -> dict[str, Any]:
        """For the plan; a manifest has a hash as well."""
        return {"name": GENERATE, "samples": self.samples, **self.made}

    @property
    def made(self) -> dict[str, Any]:
        settings = {key: value for key, value in asdict(self).items() if key != "samples"}
        return {"generated": {**settings, "reference": REFERENCE}}


def dataset_named(text: str) -> Path | Generate:
    """What ``--dataset`` says: a file, or ``generate``, ``generate:N``. A file of that name has a folder before it."""
    match = _GENERATE.fullmatch(text)
    if match is None:
        return Path(text)
    if match[1] is None:
        return Generate()
    if not match[1].isascii() or not match[1].isdigit() or not 1 <= int(match[1][:9]) <= _MOST_GENERATED:
        raise UsageError(
            f"--dataset {text[:300]}: give generate:N with N from 1 to {_MOST_GENERATED}, or ./{text[:300]} for a file"
        )
    return Generate(int(match[1]))


def load(path: Path | None, vocabulary: Vocabulary | None) -> Dataset:
    """The samples of ``path`` (None: the built-in ones) for a model with this tokenizer.

    UsageError names the entry that is wrong. A model without a template gets its texts as they are.
    """
    template = _template(vocabulary) if vocabulary else None
    if path is None:
        return Dataset(BUILT_IN, _built_in(template))
    samples = _samples(path.name, _entries(path), template)
    if not samples:
        raise UsageError(f"--dataset {path} holds no sample: give conversations or texts to calibrate with")
    return Dataset(path.name, samples)


@dataclass(frozen=True)
class _Template:
    """A model's template, if it has one, and the texts of its special tokens."""

    source: str | None
    bos: str | None
    eos: str | None
    special: tuple[str, ...]


def _template(vocabulary: Vocabulary) -> _Template:
    kinds = zip(vocabulary.tokens, vocabulary.types, strict=True)
    special = tuple(text for text, kind in kinds if kind == CONTROL and text)
    bos, eos = vocabulary.text(vocabulary.bos), vocabulary.text(vocabulary.eos)
    return _Template(vocabulary.chat_template or None, bos, eos, special)


@lru_cache(maxsize=16)
def _built_in(template: _Template | None) -> tuple[Pair, ...]:
    data = resources.files("rkconvert").joinpath("data/calibration.json").read_text(encoding="utf-8")
    return _samples(BUILT_IN, [(f"entry {i}", e) for i, e in enumerate(json.loads(data), 1)], template)


def _samples(name: str, entries: list[Entry], template: _Template | None) -> tuple[Pair, ...]:
    with ExitStack() as stack:
        render = _Renderer(template, stack) if template else None
        return tuple(_sample(f"{name}, {place}", entry, render) for place, entry in entries)


class _Renderer:
    """Whose child process ends with ``stack``; begun when it is needed."""

    def __init__(self, template: _Template, stack: ExitStack) -> None:
        self._template, self._stack = template, stack
        self._render: Renderer | None = None

    def __call__(self, messages: list[dict[str, str]]) -> str:
        template = self._template
        if template.source is None:
            return "\n".join(message["content"] for message in messages)
        if self._render is None:
            tokens = {"bos_token": template.bos, "eos_token": template.eos}
            self._render = self._stack.enter_context(Renderer(template.source, tokens))
        return self._render(messages)

    def is_rendered(self, text: str) -> bool:
        """Whether somebody has put the text into a template before."""
        return any(token in text for token in self._template.special)


@contextmanager
def renderer(vocabulary: Vocabulary) -> Iterator[_Renderer]:
    """Puts messages into the model's template."""
    with ExitStack() as stack:
        yield _Renderer(_template(vocabulary), stack)


def _entries(path: Path) -> list[Entry]:
    try:
        raw = files.read_bytes(path, _MOST, None, UsageError)
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"--dataset {path} is not a text in UTF-8 (byte {error.start})") from error
    except FileNotFoundError as error:
        raise UsageError(f"--dataset {path}: {error.strerror}") from error
    suffix = path.suffix.lower()
    if suffix == ".jsonl":
        lines = [(i, line) for i, line in enumerate(text.splitlines(), 1) if line.strip()]
        return [(f"line {i}", _json(line, f"--dataset {path}, line {i}")) for i, line in lines]
    if suffix == ".json":
        found = _json(text, f"--dataset {path}")
        if not isinstance(found, list):
            what = type(found).__name__
            raise UsageError(f"--dataset {path} holds a {what}, expected a list of objects with {_FORMS}")
        return [(f"entry {i}", entry) for i, entry in enumerate(found, 1)]
    paragraphs = [p.strip() for p in re.split(r"\n\s*\n", text) if p.strip()]
    return [(f"paragraph {i}", dict(zip(("prompt", "answer"), _cut_in_halves(p)))) for i, p in enumerate(paragraphs, 1)]


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where} is not JSON: {error}") from error


def _cut_in_halves(paragraph: str) -> Pair:
    """Cut at the end of the sentence, else of the word, that is nearest the middle."""
    breaks = [m.end() for m in _SENTENCE.finditer(paragraph) if 0 < m.end() < len(paragraph)]
    breaks = breaks or [m.end() for m in re.finditer(r"\s+", paragraph)] or [len(paragraph) // 2]
    cut = min(breaks, key=lambda end: abs(end - len(paragraph) / 2))
    return paragraph[:cut].strip(), paragraph[cut:].strip()


def _sample(where: str, entry: Any, render: _Renderer | None) -> Pair:
    if not isinstance(entry, dict):
        raise UsageError(f"--dataset {where}: found a {type(entry).__name__}, expected an object with {_FORMS}")
    try:
        if "messages" in entry:
            *asked, last = _messages(where, entry["messages"])
            return (render(asked) if render else asked[-1]["content"]), last["content"]
        if "input" in entry or "target" in entry:
            question, answer = _required_text(where, entry, ("input",)), _required_text(where, entry, ("target",))
            if render is None or render.is_rendered(question):
                return question, answer
        else:
            question, answer = _required_text(where, entry, _QUESTIONS), _required_text(where, entry, _ANSWERS)
        return (render([{"role": "user", "content": question}]) if render else question), answer
    except BundleError as error:
        raise UsageError(f"--dataset {where}: {error}") from error


def _messages(where: str, value: Any) -> list[dict[str, str]]:
    whole = isinstance(value, list) and all(
        isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in value
    )
    if not whole or len(value) < 2 or value[-1]["role"] != "assistant":
        raise UsageError(
            f"--dataset {where}: 'messages' has to be a list of two or more with role and content, the last one the "
            "assistant's"
        )
    return list(value)


def _required_text(where: str, entry: Mapping[str, Any], names: tuple[str, ...]) -> str:
    value = next((entry[name] for name in names if name in entry), None)
    if not isinstance(value, str) or not value.strip():
        raise UsageError(f"--dataset {where}: {' or '.join(map(repr, names))} is missing, empty or not a text")
    return value
