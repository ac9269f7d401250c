"""What was measured, as it comes and as it is kept: checked, for a board, a server or a file may say anything."""

from __future__ import annotations

import json
import math
import os
import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

import rk3588
from rk3588 import files
from rk3588.errors import BenchError, TargetError, UsageError, printable

SCHEMA = 1
_MOST_BYTES = 16 << 20  # of a file of results
_MOST_SAMPLES = 20_000
_MOST = 1e18
_COUNTS = {"bytes", "params", "resident", "runtime_bytes", "threads", "context"}  # of ``about``
_LONGEST = 300  # characters of a text


@dataclass(frozen=True)
class Sample:
    """One repetition. Tokens per second, and the tokens there really were."""

    ns: int
    rate: float
    prompt_tokens: int
    tokens: int
    answers: int = 1


@dataclass(frozen=True)
class Row:
    """One test: its samples, and what llama-bench says of them."""

    test: str
    n_prompt: int  # of the prompts there really were: their mean
    n_gen: int
    samples: Sequence[Sample]

    @property
    def rate(self) -> tuple[float, float]:
        return _mean([sample.rate for sample in self.samples])

    @property
    def ns(self) -> tuple[float, float]:
        return _mean([float(sample.ns) for sample in self.samples])

    @property
    def kind(self) -> str:
        return self.test.rstrip("0123456789")


@dataclass
class Report:
    """All of one run. ``about``: model, backend and the like; ``readings``: before and after."""

    target: str
    about: dict[str, Any] = field(default_factory=dict)
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    clients: list[dict[str, Any]] = field(default_factory=list)
    readings: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    date: str = ""
    interrupted: bool = False

    @classmethod
    def begin(cls, target: str) -> Report:
        return cls(target, date=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))

    @property
    def rows(self) -> list[Row]:
        return [_row(test, samples) for test, samples in self.samples.items() if samples]

    @property
    def empty(self) -> bool:
        return not self.samples and not self.clients

    def row(self, kind: str) -> Optional[Row]:
        """The first test of this kind."""
        return next((row for row in self.rows if row.kind == kind), None)

    def take(self, event: Any) -> None:
        """One event of a measurement; BenchError for what is none."""
        name, value = next(iter(event.items())) if isinstance(event, dict) and len(event) == 1 else ("", None)
        try:
            self._take(name, value)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BenchError(f"what {self.target} tells of its speed makes no sense ({name or 'no event'})") from error

    def _take(self, name: str, value: Any) -> None:
        if name == "about":
            self.about.update(_about(value))
        elif name == "sample":
            self.samples.setdefault(_test_name(value["test"]), []).append(_sample(value))
            if sum(map(len, self.samples.values())) > _MOST_SAMPLES:
                raise ValueError(name)
        elif name == "clients":
            self.clients.append(_clients(value))
        elif name == "readings":
            when = value["when"]
            if when not in ("before", "after"):
                raise ValueError(when)
            self.readings[when] = _table({key: value[key] for key in value if key != "when"}, 4)
        elif name == "note":
            self.notes = list(dict.fromkeys([*self.notes, _text(value)]))[:100]
        else:
            raise ValueError(name)

    def document(self) -> dict[str, Any]:
        """For a file; ``read`` reads it."""
        samples = {test: [vars(sample) for sample in found] for test, found in self.samples.items()}
        return {
            "rk3588_bench": SCHEMA, "version": rk3588.__version__, "date": self.date, "target": self.target,
            "machine": machine(), "interrupted": self.interrupted, "about": self.about, "samples": samples,
            "clients": self.clients, "readings": self.readings, "notes": self.notes,
        }  # fmt: skip

    def save(self, path: Path) -> None:
        """Whole or not at all."""
        part = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            part.write_text(json.dumps(self.document(), indent=1) + "\n", encoding="utf-8")
            part.replace(path)
        except OSError as error:
            raise TargetError(f"cannot write {path}: {error.strerror}") from error
        finally:
            part.unlink(missing_ok=True)


def check_place(path: Path) -> None:
    """Before minutes of measuring."""
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise TargetError(f"--save {path}: give a file in a folder that is there and can be written to")


def read(path: Path) -> Report:
    """What ``save`` has written; UsageError, BenchError for all else."""
    try:
        said = files.read_json(path, _MOST_BYTES, None, BenchError)
    except FileNotFoundError:
        told = f"there is no such file; `rk3588 bench … --save {path}` writes one"
        raise UsageError(f"--against {path}: {told}") from None
    if not isinstance(said, dict) or said.get("rk3588_bench") != SCHEMA:
        raise BenchError(f"--against {path} is no file that this version of `rk3588 bench --save` wrote")
    try:
        return _read(said)
    except (KeyError, TypeError, ValueError, AttributeError, BenchError) as error:
        raise BenchError(f"--against {path} is damaged: measure again with --save {path}") from error


def _read(said: Mapping[str, Any]) -> Report:
    found = Report(_text(said["target"]), date=_text(said["date"]), interrupted=said["interrupted"] is True)
    found.take({"about": said["about"]})
    for test, samples in said["samples"].items():
        for sample in samples:
            found.take({"sample": {"test": test, **sample}})
    for each in said["clients"]:
        found.take({"clients": each})
    for when, values in said["readings"].items():
        found.take({"readings": {"when": when, **values}})
    for each in said["notes"]:
        found.take({"note": each})
    return found


def machine() -> dict[str, Any]:
    """This one: processor and cores."""
    return {"cpu": processor(), "cores": len(os.sched_getaffinity(0))}


def processor() -> str:
    """As Linux calls it, else its architecture: most ARM ones have no name."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    named = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return printable(named[0][:_LONGEST]) if named else platform.machine()


def _row(test: str, samples: Sequence[Sample]) -> Row:
    size, kind = int(test.lstrip("ptgf")), test.rstrip("0123456789")
    mean = round(statistics.fmean(sample.prompt_tokens for sample in samples))
    return Row(test, 0 if kind == "tg" else mean, {"tg": size, "ttft": 1}.get(kind, 0), samples)


def _mean(values: Sequence[float]) -> tuple[float, float]:
    """And the standard deviation, as llama-bench has it: 0 of one value."""
    return statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else 0.0


def _test_name(value: Any) -> str:
    kind, size = str(value).rstrip("0123456789"), str(value)[len(str(value).rstrip("0123456789")) :]
    if kind not in ("pp", "tg", "ttft") or not 0 < len(size) < 8:
        raise ValueError(value)
    return f"{kind}{int(size)}"


def _sample(value: Mapping[str, Any]) -> Sample:
    counts = [_number(value[name], 0) for name in ("prompt_tokens", "tokens", "answers")]
    return Sample(round(_number(value["ns"], 1)), _number(value["rate"], 1e-9), *map(round, counts))


def _about(value: Any) -> dict[str, Any]:
    found = _table(value, 4)
    for name in _COUNTS & set(found):
        _number(found[name], 1)
    return found


def _clients(value: Mapping[str, Any]) -> dict[str, Any]:
    counts = {name: round(_number(value[name], 0)) for name in ("clients", "requests", "failed", "tokens", "ns")}
    times = {name: {p: _number(value[name][p], 0) for p in ("p50", "p90", "p99")} for name in ("ttft_ms", "queue_ms")}
    if value["queue_from"] not in ("server", "lone"):
        raise ValueError(value)
    more = {"why": _text(value["why"]), "queue_from": value["queue_from"], "rate": _number(value["rate"], 0)}
    return {"test": f"c{counts['clients']}", **counts, **times, **more}


def _number(value: Any, least: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(value)
    if not math.isfinite(value) or not least <= value <= _MOST:
        raise ValueError(value)
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return printable(value[:_LONGEST])


def _table(value: Any, depth: int) -> dict[str, Any]:
    """Names and plain values, no deeper than ``depth`` and no longer than such tables are."""
    if not isinstance(value, dict) or len(value) > 64:
        raise TypeError(value)
    return {_text(name): _value(each, depth - 1) for name, each in value.items()}


def _value(value: Any, depth: int) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, (int, float)):
        return _number(value, -_MOST)
    if isinstance(value, str):
        return _text(value)
    if depth < 1:
        raise ValueError(value)
    if isinstance(value, list) and len(value) <= 256:
        return [_value(each, depth - 1) for each in value]
    return _table(value, depth)
