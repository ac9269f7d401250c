"""Which runtime runs which toolkit's models, and what releases are known to get wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rk3588 import compatibility
from rk3588.bundle import Bundle
from rk3588.compatibility import DEFECTS, DRIVERS, RELEASES, SEEN, pairing
from rk3588.families import version

# Runtime, toolkit, level: the rows of what owners have told, and what follows from them.
PAIRS = [
    ("1.1.1", "1.1.1", "ok"), ("1.1.1", "1.1.4", "ok"), ("1.1", "1.1.2", "ok"), ("1.1.4", "1.1.1", "ok"),
    ("1.2.1", "1.1.1", "ok"), ("1.2.1", "1.2.0", "ok"), ("1.2.3", "1.1.1", "ok"), ("1.2.3", "1.2.3", "ok"),
    ("1.3.0", "1.1.1", "ok"), ("1.3.0", "1.2.1b1", "ok"), ("1.3.1", "1.3.0", "ok"),
    ("1.1.1", "1.2.0", "refuse"), ("1.1.1", "1.3.1", "refuse"), ("1.2.1", "1.2.3", "refuse"),
    ("1.2.3", "1.3.0", "refuse"), ("1.1.1", "1.0.1", "refuse"), ("1.3.1", "1.0.1", "refuse"),
    ("1.2.0", "1.1.4", "info"), ("1.3.1", "1.1.1", "info"), ("1.2 or newer", "1.2.3", "info"), ("?", "1.1.1", "info"),
    ("1.0", "1.0.1", "info"),
]  # fmt: skip


@pytest.mark.parametrize(("runtime", "toolkit", "level"), PAIRS)
def test_pairs(runtime: str, toolkit: str, level: str) -> None:
    found = pairing(runtime, toolkit)
    assert found.level == level
    assert f"rkllm-toolkit {toolkit} under librkllmrt {runtime}: " in found.text


def test_every_row_has_a_source_and_names_releases() -> None:
    for seen in SEEN:
        assert seen.source and seen.oldest in RELEASES and seen.newest in RELEASES
        assert version(seen.oldest) <= version(seen.newest)
    for defect in DEFECTS:
        assert defect.source and defect.text and defect.remedy and defect.level in ("warn", "info")
        assert version(defect.first) <= version(defect.last) and {defect.first, defect.last} <= set(RELEASES)
    assert all(release in RELEASES and source for release, _, source in DRIVERS)


@pytest.mark.parametrize("text", ["1." + "9" * 5000, "9" * 5000, "1.1234567", "x", ""])
def test_what_is_no_release(text: str) -> None:
    assert version(text) == ()


def test_who_may_run_a_model() -> None:
    assert compatibility.runtimes_for("1.2.3") == ["1.2.3", "1.3.1"]  # 1.3.0 ends in SIGILL
    assert compatibility.runtimes_for("1.1.4")[0] == "1.1.0" and len(compatibility.runtimes_for("1.1.4")) == 10
    assert compatibility.runtimes_for("1.0.1") == ["1.0.1"]
    assert compatibility.runtimes_for("2.0.0") == []
    told = {"1.1.4": "1.1.0 to 1.2.3 or 1.3.1", "1.2.3": "1.2.3 or 1.3.1", "1.0.1": "1.0.1", "2.0.0": ""}
    assert {toolkit: compatibility.runtimes_told(toolkit) for toolkit in told} == told


@pytest.mark.parametrize(
    ("runtime", "model", "soc", "told"),
    [
        ("1.2.3", "DeepSeek-R1-Distill-Qwen-1.5B", "RK3588", ["[PAD…]"]),
        ("1.2.3", "Qwen2.5-1.5B-Instruct", "RK3588", []),
        ("1.2.2", "DeepSeek-R1-Distill-Qwen-1.5B", "RK3588", []),
        ("1.3.0", "Qwen2.5-1.5B-Instruct", "RK3588", ["SIGILL", "crashes the next"]),
        ("1.3.0", "Qwen3-1.7B", "RK3588", ["SIGILL", "crashes the next", "</think>"]),
        ("1.3.1", "Qwen3-1.7B", "RK3588S", ["SIGBUS"]),
        ("1.3.1", "Qwen3-1.7B", "RK3588", []),
        ("1.2.1", "", "", ["run_async hangs", "garble"]),
        ("1.2 or newer", "DeepSeek-R1", "RK3588", []),
    ],
)
def test_defects(runtime: str, model: str, soc: str, told: list[str]) -> None:
    found = compatibility.defects(runtime, model, soc)
    assert len(found) == len(told)
    assert all(part in defect.text for part, defect in zip(told, found))


def test_the_driver_that_a_runtime_wants() -> None:
    assert compatibility.driver_for("1.3.1")[0] == (0, 9, 8)
    assert compatibility.driver_for("1.1.1")[0] == compatibility.driver_for("1.2 or newer")[0] == ()


CLAIMED = {"adopted": {"claims": {"toolkit": {"value": "1.1.4", "by": "a name"}}}}


@pytest.mark.parametrize(
    ("end", "manifest", "found"),
    [
        (b"rkllm-toolkit version: 1.3.1", CLAIMED, ("1.3.1", False)),
        (b"", {"toolkit": {"version": "1.1.1+double"}}, ("1.1.1+double", False)),
        (b"", CLAIMED, ("1.1.4", True)),
        (b"", {"toolkit": {"version": ["no"]}}, None),
        (b"", {"adopted": {"claims": {"toolkit": {"value": "new", "by": "a name"}}}}, None),
        (b"", {}, None),
    ],
)
def test_the_toolkit_of_a_bundle(
    tmp_path: Path, end: bytes, manifest: dict[str, Any], found: tuple[str, bool] | None
) -> None:
    (tmp_path / "model.rkllm").write_bytes(bytes(1000) + end)
    bundle = Bundle(tmp_path, {"artifacts": {"rk3588": "model.rkllm"}, **manifest})
    assert compatibility.toolkit_of(bundle) == found


def test_no_toolkit_wrote_what_is_for_the_simulated_runtime(tmp_path: Path) -> None:
    assert compatibility.toolkit_of(Bundle(tmp_path, {"artifacts": {"sim": "model.sim.gguf"}})) is None
