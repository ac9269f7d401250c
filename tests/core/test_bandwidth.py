"""A board whose memory is slower than that of the published figures; and figures that were not fitted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from rk3588 import boards, predict
from rk3588.commands.board import board as board_command
from rk3588.errors import UsageError
from rk3588.predict import Workload
from tests.bench import predict_fit, predict_table
from tests.core import test_predict
from tests.core.test_predict import SOC, run

folder = test_predict.folder


def _board(*arguments: str) -> Result:
    return CliRunner().invoke(board_command, arguments)


def _written(text: str) -> Path:
    Path("hosts.yaml").write_text(text, encoding="utf-8")
    return Path("hosts.yaml")


def test_figures_that_were_not_fitted_lie_in_their_intervals() -> None:
    """Rockchip's own; the fit never saw these rows, nor, of LFM2, the architecture."""
    found = [each.errors for each in predict_table.held_out() if each.kind == "published"]
    assert [(e.row.model.partition("(")[0], e.row.dtype) for e in found] == [
        ("Qwen2-0.5B", "w8a8"), ("Qwen2-0.5B", "w8a8_g128"), ("LFM2-350M", "w8a8"),
    ]  # fmt: skip
    fitted = {(row.source, row.model, row.dtype) for row in predict_fit.rows()}
    held_out = {(each.source, each.errors.row.model, each.errors.row.dtype) for each in predict_table.held_out()}
    assert not fitted & held_out
    assert all(e.decode_inside and e.ttft_inside for e in found)
    assert [round(e.decode, 3) for e in found] == [0.018, 0.077, -0.033]
    assert [round(e.ttft, 3) for e in found] == [0.107, 0.074, -0.015]


def test_what_owners_measured_is_the_formula_at_their_memorys_speed() -> None:
    """Clocks at their highest give the published speed; of a slower memory, prediction can be told."""
    owners = {each.errors.row.model: each for each in predict_table.held_out() if each.kind == "owner"}
    assert round(owners["Qwen2.5-1.5B"].errors.decode, 3) == 0.045
    assert [round(owners[m].bandwidth, 1) for m in ("Qwen2.5-1.5B", "Qwen3-4B", "Qwen3-0.6B")] == [28.2, 20.5, 11.4]
    for each in owners.values():
        row = each.errors.row
        work = Workload(row.prompt, row.new, row.prompt + row.new, bandwidth_gb_s=each.bandwidth)
        speed = predict.predict(row, row.dtype, work, SOC).decode_tok_s
        assert 1e3 / speed.value == pytest.approx(row.decode_ms)
        assert each.url.startswith("https://")


def test_a_boards_own_bandwidth_counts_where_none_is_said(folder: Path) -> None:
    text = "hosts: {half: {board: rock-5c, bandwidth_gb_s: 12.8}, whole: {board: rock-5c}}"
    Path("hosts.yaml").write_text(text, encoding="utf-8")
    asked = (folder, "--board", "half", "--board", "whole", "--dtype", "w8a8")
    half, whole = json.loads(run(*asked, "--json").stdout)
    assert (half["bandwidth_gb_s"], whole["bandwidth_gb_s"]) == (12.8, None)
    assert half["decode_tok_s"]["value"] < 0.6 * whole["decode_tok_s"]["value"]
    assert any("measured at about 30 GB/s" in note for note in half["notes"])
    shown = run(*asked).stdout
    assert "memory 12.8 GB/s" in shown and shown.count("Radxa Rock 5C") == 2
    said_so = [json.loads(run(*asked, "--json", *more).stdout) for more in (("--bandwidth", 20), ("--ddr", 2112))]
    assert [[f["bandwidth_gb_s"] for f in found] for found in said_so] == [[20, 20], [None, None]]
    assert said_so[0][0]["decode_tok_s"] == said_so[0][1]["decode_tok_s"]
    assert "context 4096 tokens, memory 20 GB/s" in run(*asked, "--bandwidth", "20").stdout


def test_a_board_and_a_host_may_have_a_memory_of_their_own_speed(folder: Path) -> None:
    del folder
    text = "boards:\n  slow: {soc: RK3588, ram_gb: [8], bandwidth_gb_s: 15}\n"
    known = boards.load(_written(f"{text}hosts:\n  a: {{board: slow}}\n  b: {{board: slow, bandwidth_gb_s: 12.8}}\n"))
    assert [known.board(name).bandwidth_gb_s for name in ("slow", "a", "b", "rock-5b")] == [15, 15, 12.8, None]
    assert _board("add", "attic", "--board", "rock-5b", "--bandwidth", "13.5", "--hosts", "hosts.yaml").exit_code == 0
    assert json.loads(_board("show", "attic", "--json").stdout)["type"]["bandwidth_gb_s"] == 13.5
    assert "memory      13.5 GB/s" in _board("show", "attic").stdout
    for wrong in ("nan", "-3", "1e9"):
        refused = _board("add", "x", "--board", "rock-5b", "--bandwidth", wrong, "--hosts", "hosts.yaml")
        assert isinstance(refused.exception, UsageError)
        assert "'bandwidth_gb_s' of host 'x' has to be" in str(refused.exception)
