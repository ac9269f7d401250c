"""What `rk3588 bench` keeps, compares and shows: figures by hand, and files that are not what they should be."""

from __future__ import annotations

import csv
import io
import json
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from rk3588.bench import compare, events, figure, plan, results, tables
from rk3588.bench.results import Report
from rk3588.errors import BenchError, UsageError


def report(rates: Mapping[str, list[float]], **about: Any) -> Report:
    found = Report.begin("test")
    found.take(events.about(model="Tiny w8a8", **about))
    for test, values in rates.items():
        size = int(test.lstrip("ptgf"))
        for rate in values:
            ns = round(size * 1e9 / rate)
            found.take(events.sample(test, ns, rate, 8 if test.startswith("tg") else size, size))
    return found


def test_the_mean_and_deviation_are_llama_benchs() -> None:
    (row,) = report({"pp512": [100.0, 110.0, 120.0]}).rows
    assert row.rate == (110.0, 10.0) and (row.n_prompt, row.n_gen) == (512, 0)
    (row,) = report({"tg128": [10.0]}).rows
    assert row.rate == (10.0, 0.0) and (row.n_prompt, row.n_gen) == (0, 128)


def test_names_are_llama_benchs() -> None:
    """So that what reads its JSON reads ours."""
    found = report({"pp512": [100.0, 120.0]}, bytes=1 << 20, params=2_000_000, backend="B", threads=4, file="m.gguf")
    (row,) = json.loads(tables.render(found, "json"))
    names = (
        "model_filename model_type model_size model_n_params backends n_threads n_prompt n_gen test_time avg_ns "
        "stddev_ns avg_ts stddev_ts samples_ns samples_ts cpu_info"
    )
    assert set(names.split()) <= set(row)
    assert (row["avg_ts"], row["n_threads"], row["model_size"]) == (110.0, 4, 1 << 20)
    assert row["avg_ns"] == round(statistics.fmean(row["samples_ns"]))
    (line,) = tables.render(found, "jsonl").splitlines()
    assert json.loads(line) == row
    (of_csv,) = csv.DictReader(io.StringIO(tables.render(found, "csv")))
    assert of_csv["avg_ts"] == "110.0" and "samples_ts" not in of_csv


def test_the_table() -> None:
    found = report({"pp512": [100.0, 120.0], "tg128": [10.0, 10.0], "ttft64": [64.0]}, bytes=3 << 19, params=1.24e9)
    found.take(events.readings("before", {"clocks": [{"name": "npu", "hertz": 1e9, "governor": "performance"}]}))
    found.take(events.readings("after", {"temperatures": {"soc": 61.5}}))
    lines = tables.render(found, "md").splitlines()
    assert lines[2].split("|")[1:-1] == [
        " Tiny w8a8 ", " 1.50 MiB ", " 1.24 B ", " not told ", "       - ", " pp512 ", " 110.00 ± 14.14 "
    ]  # fmt: skip
    assert len({len(line) for line in lines[:4]}) == 1
    assert "| Tiny w8a8 |        10.0 |       1000.00 ± 0.00 |        110.0 |              2 | not told |" in lines
    text = "\n".join(lines)
    assert "| npu clock       | 1000 MHz performance |       - |" in text
    assert "| soc temperature |                    - | 61.5 °C |" in text


def test_what_is_predicted_stands_beside_and_says_of_what() -> None:
    there = {"board": "Rock 5B", "is_this_board": False, "tests": {"tg128": {"value": 9.0, "low": 8.0, "high": 12.5}}}
    text = tables.render(report({"tg128": [10.0]}, predicted=there, simulated=True), "md")
    assert "| tg128 | 10.0 t/s | 9.0 (8.0–12.5) |" in " ".join(text.split())
    assert "The prediction is for the NPU of the Rock 5B; what was measured is a simulated runtime" in text
    here = {**there, "is_this_board": True}
    assert "The prediction" not in tables.render(report({"tg128": [10.0]}, predicted=here), "md")
    assert "predicted" not in tables.render(report({"tg128": [10.0]}), "md")


def test_a_ratio_is_outside_the_noise_or_not() -> None:
    old = report({"tg128": [10.0, 10.1, 9.9, 10.0, 10.0], "pp512": [100.0, 90.0, 110.0], "tg64": [9.0]})
    new = report({"tg128": [11.0, 11.1, 10.9, 11.0, 11.0], "pp512": [102.0, 92.0, 112.0], "tg64": [10.0], "pp9": [1.0]})
    faster, noise, unknown = compare.compare(new, old)
    assert faster.ratio == pytest.approx(1.1) and faster.verdict == compare.FASTER
    assert faster.low > 1.08 and faster.high < 1.12
    assert noise.ratio == pytest.approx(1.02) and noise.verdict == compare.NOISE
    assert unknown.verdict == compare.UNKNOWN
    assert compare.compare(old, new)[0].verdict == compare.SLOWER
    (same,) = compare.compare(report({"tg8": [5.0, 5.0]}), report({"tg8": [5.0, 5.0]}))
    assert same.verdict == compare.NOISE


def test_students_t_is_welchs() -> None:
    """Ten figures a side of the same spread have 18 degrees of freedom; of very different ones, 9."""
    assert compare.student((1.0, 1.0), (10, 10)) == 2.101
    assert compare.student((1.0, 1e-9), (10, 10)) == 2.262
    assert compare.student((1.0, 1.0), (40, 40)) == 1.96


def test_other_machines_are_told() -> None:
    old, new = report({"tg8": [5.0]}, cpu="A", threads=2), report({"tg8": [6.0]}, cpu="B", threads=2)
    assert compare.differences(new, old) == ["cpu was A, is B"]
    assert "Not like for like: cpu was A, is B." in tables.render(new, "md", old)
    assert "No test of this run" in tables.render(report({"pp8": [1.0]}), "md", old)


def test_what_is_kept_is_read_again(tmp_path: Path) -> None:
    found = report({"pp512": [100.0, 110.0]}, predicted={"board": "x", "tests": {"pp512": {"value": 1.0}}})
    found.take(events.readings("before", {"temperatures": {"soc": 50.0}, "clocks": [{"name": "npu", "hertz": 10**9}]}))
    found.take(events.note("something"))
    found.save(tmp_path / "a.json")
    again = results.read(tmp_path / "a.json")
    assert {**vars(again), "date": ""} == {**vars(found), "date": ""}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize(
    "change",
    [
        lambda d: d.pop("samples"),
        lambda d: d["samples"].update(pp512=[{"ns": 1}]),
        lambda d: d["samples"].update(pp512=[{**d["samples"]["pp512"][0], "rate": float("nan")}]),
        lambda d: d["samples"].update(pp512=[{**d["samples"]["pp512"][0], "rate": -1}]),
        lambda d: d["samples"].update({"rm -rf": d["samples"]["pp512"]}),
        lambda d: d.update(about=[]),
        lambda d: d.update(clients=[{}]),
        lambda d: d.update(notes=[1]),
        lambda d: d.update(about={"a": {"b": {"c": {"d": {"e": {}}}}}}),
    ],
)
def test_a_damaged_file_is_one_sentence(tmp_path: Path, change: Any) -> None:
    document = report({"pp512": [100.0]}).document()
    change(document)
    (tmp_path / "a.json").write_text(json.dumps(document))
    with pytest.raises(BenchError, match="is damaged: measure again"):
        results.read(tmp_path / "a.json")


def test_what_is_no_such_file(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"rk3588_bench": 99}')
    with pytest.raises(BenchError, match="no file that this version"):
        results.read(tmp_path / "a.json")
    (tmp_path / "a.json").write_text("[" * 100_000)
    with pytest.raises(BenchError, match="cannot read"):
        results.read(tmp_path / "a.json")
    with pytest.raises(BenchError, match="is a folder"):
        results.read(tmp_path)


def test_what_steers_a_terminal_does_not_get_there() -> None:
    found = report({"pp8": [1.0]}, file="\x1b[2J")
    found.take(events.about(model="a|b\x1b]0;x\x07"))
    for kind in tables.FORMATS:
        assert "\x1b" not in tables.render(found, kind)
    assert "a\\|b" in tables.render(found, "md")


def test_events_that_are_none() -> None:
    wrong: list[Any] = [[], {}, {"a": 1, "b": 2}, {"sample": 1}, {"readings": {"when": "now"}}, {"about": {"": set()}}]
    for event in wrong:
        with pytest.raises(BenchError, match="makes no sense"):
            Report.begin("x").take(event)


@pytest.mark.parametrize("facts", [{"bytes": "many"}, {"params": -1}, {"threads": [1]}, {"resident": float("inf")}])
def test_facts_that_cannot_be_are_refused(facts: Any) -> None:
    with pytest.raises(BenchError, match="makes no sense"):
        report({}, **facts)


def test_facts_of_any_kind_can_be_shown() -> None:
    found = report({"tg8": [1.0]}, predicted=[1], simulated="x", board=["y"])
    found.take(events.about(model=7))
    found.take(events.readings("before", {"clocks": 5, "temperatures": [1]}))
    found.take(events.readings("after", {"clocks": [1, {"hertz": "x"}], "temperatures": {"a": "b"}}))
    for kind in tables.FORMATS:
        assert tables.render(found, kind, found)


def test_several_numbers_by_commas() -> None:
    found = plan.make("512,64,512", "0", 0, 3, "", 1.0)
    assert [test.name for test in found.tests] == ["pp512", "pp64"]
    assert plan.plan_of(json.loads(json.dumps(found.frame()))) == found
    for wrong in ("", "-1", "1.5", "1,,2", "9" * 30, "٣", ",".join(map(str, range(1, 20)))):
        with pytest.raises(UsageError, match="-p"):
            plan.make(wrong, "0", 0, 1, "", 1.0)


def test_the_figure(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    there = {"board": "Rock 5B", "tests": {"tg128": {"value": 9.0, "low": 8.0, "high": 12.5}}}
    new = report({"pp512": [100.0, 120.0], "tg128": [10.0], "ttft64": [64.0]}, predicted=there)
    figure.draw(tmp_path / "a.svg", new, report({"tg128": [9.0, 9.5]}))
    text = (tmp_path / "a.svg").read_text()
    assert all(f"<!-- {label} -->" in text for label in ("pp512", "tg128", "ttft64", "measured", "predicted, Rock 5B"))
    figure.draw(tmp_path / "a.png", new, None)
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"


def test_what_goes_to_boards_needs_nothing_else() -> None:
    """The standard library of Python 3.9, and the modules that are sent along."""
    import ast
    import zipfile

    from rk3588.deploy import measuring

    with zipfile.ZipFile(io.BytesIO(measuring.program_zip())) as archive:
        names = archive.namelist()
        for name in names:
            tree = ast.parse(archive.read(name))
            for node in ast.walk(tree):
                if isinstance(node, ast.Import):
                    assert all(each.name.partition(".")[0] in sys.stdlib_module_names for each in node.names), name
                elif isinstance(node, ast.ImportFrom) and not node.level:
                    base = (node.module or "").partition(".")[0]
                    assert base in sys.stdlib_module_names or node.module == "rk3588.errors", name
                elif isinstance(node, ast.ImportFrom):
                    wanted = [node.module] if node.module else [each.name for each in node.names]
                    assert all(f"rk3588/bench/{each}.py" in names for each in wanted), name
