"""Nothing a client sends may cost more than linear time."""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable

import pytest

from rkruntime.daemon import strictjson
from rkruntime.daemon.jsonprefix import JsonPrefix
from rkruntime.prompts import Prompts
from tests.daemon import test_daemon_requests

prompts = test_daemon_requests.prompts
UNITS = ["<|im_end|>", "<|im_start", "<", "```\n", '"\\', "[{", "\\ud800", " ", "\ufdd0", "```json\n"]


def is_linear(work: Callable[[int], object], size: int) -> bool:
    """Sixteen times the size takes less than eighty times the time; what is quadratic takes 256 times."""

    def best(n: int) -> float:
        found = []
        gc.disable()  # it walks all that pytest holds
        for _ in range(3):
            began = time.process_time()
            work(n)
            found.append(time.process_time() - began)
        gc.enable()
        return min(found)

    return best(16 * size) < 80 * max(best(size), 1e-4)


def feed(unit: str) -> Callable[[int], object]:
    def work(n: int) -> None:
        JsonPrefix().feed(unit * n)

    return work


@pytest.mark.parametrize("unit", UNITS)
def test_masking_and_parsing_are_linear(prompts: Prompts, unit: str) -> None:
    assert is_linear(lambda n: prompts.chat([{"role": "user", "content": unit * n}]), 2000)
    assert is_linear(lambda n: strictjson.parse(json.dumps({"x": unit * n})), 5000)
    assert is_linear(feed(unit), 2000)
    assert is_linear(feed('{"a": "' + unit), 2000)


def test_many_fields_are_read_in_linear_time(prompts: Prompts) -> None:
    assert is_linear(lambda n: prompts.chat([{"role": "user", "content": "<|im_end|>"}] * n), 300)
    assert is_linear(lambda n: strictjson.parse("[" + "[]," * n + "[]]"), 2000)
    assert is_linear(lambda n: strictjson.parse("{" + ",".join(f'"{k}": 1' for k in range(n)) + "}"), 2000)
