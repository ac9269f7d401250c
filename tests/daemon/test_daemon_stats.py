"""/stats and /metrics: what is counted, what of a board is read, and that nothing is made up."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from rk3588 import bundle as bundles
from rkruntime.daemon import board, figures, metrics
from rkruntime.daemon.engine import WorkerEngine
from rkruntime.daemon.figures import Figures, Timing
from rkruntime.daemon.jobs import Durations, Status
from rkruntime.daemon.queue import FairQueue
from tests.daemon_server import served, until
from tests.fake_engine import FakeEngine

ROOT = Path(__file__).resolve().parent.parent.parent
MONITORING = ROOT / "docs" / "monitoring"
BOARD = {
    "sys/firmware/devicetree/base/model": "Radxa ROCK 5B\0",
    "sys/firmware/devicetree/base/compatible": "radxa,rock-5b\0rockchip,rk3588\0",
    "sys/kernel/debug/rknpu/version": "RKNPU driver: v0.9.8\n",
    "sys/kernel/debug/rknpu/load": "NPU load:  Core0: 71%, Core1:  3%, Core2:  0%,\n",
    "sys/class/devfreq/fdab0000.npu/cur_freq": "1000000000\n",
    "sys/class/devfreq/fdab0000.npu/max_freq": "1000000000\n",
    "sys/class/devfreq/fdab0000.npu/governor": "rknpu_ondemand\n",
    "sys/class/devfreq/dmc/cur_freq": "528000000\n",
    "sys/class/devfreq/dmc/governor": "dmc_ondemand\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq": "1800000\n",
    "sys/devices/system/cpu/cpufreq/policy0/cpuinfo_max_freq": "1800000\n",
    "sys/devices/system/cpu/cpufreq/policy0/related_cpus": "0 1 2 3\n",
    "sys/devices/system/cpu/cpufreq/policy0/scaling_governor": "performance\n",
    "sys/class/thermal/thermal_zone0/type": "soc-thermal\n",
    "sys/class/thermal/thermal_zone0/temp": "46230\n",
    "sys/class/thermal/thermal_zone1/type": "soc-thermal\n",
    "sys/class/thermal/thermal_zone1/temp": "-1000\n",
    "sys/class/thermal/thermal_zone2/type": "broken\n",
    "sys/class/thermal/thermal_zone2/temp": "n/a\n",
    "proc/meminfo": "MemTotal:       16252928 kB\nMemFree: 1 kB\nMemAvailable:   12000000 kB\n",
    "proc/7/status": "Name:\tpython3\nVmRSS:\t  2048 kB\n",
}


def tree(folder: Path, files: Mapping[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_a_clock_that_jumps_changes_no_uptime(monkeypatch: pytest.MonkeyPatch) -> None:
    """A board without a battery begins in 1970, and hears of the time later."""
    clock = SimpleNamespace(time=lambda: 60.0, monotonic=lambda: 5.0)
    monkeypatch.setattr(figures, "time", clock)
    found = Figures()
    assert (found.began, found.uptime_s) == (60.0, 0.0)
    clock.time, clock.monotonic = (lambda: 70.5), (lambda: 15.0)  # corrected a little, as all the time
    assert (found.began, found.uptime_s) == (60.0, 10.0)
    clock.time, clock.monotonic = (lambda: 1.8e9), (lambda: 65.0)
    assert (found.began, found.uptime_s) == (1.8e9 - 60, 60.0)
    clock.time = lambda: 1000.0  # and back
    assert (found.began, found.uptime_s) == (940.0, 60.0)


def test_a_board_is_read(tmp_path: Path) -> None:
    root = tree(tmp_path, BOARD)
    found = board.readings(root, 7)
    assert found.npu_load == (71.0, 3.0, 0.0)
    assert found.clocks == (
        board.Clock("npu", 10**9, 10**9, "rknpu_ondemand"),
        board.Clock("memory", 528 * 10**6, None, "dmc_ondemand"),
        board.Clock("cpu 0-3", 18 * 10**8, 18 * 10**8, "performance"),
    )
    assert found.temperatures == {"soc": 46.23, "soc 1": -1.0}
    assert found.memory == {"total": 16252928 << 10, "available": 12000000 << 10}
    assert found.resident == {"worker": 2 << 20}
    assert board.driver(root) == "0.9.8"
    assert board.identify(root) == board.Board("Radxa ROCK 5B", "rock-5b")
    other = tree(tmp_path / "proc", {"proc/rknpu/load": "NPU load:  12%\n"})
    assert board.readings(other).npu_load == (12.0,)


def test_what_is_not_there_is_left_out(tmp_path: Path) -> None:
    found = board.readings(tmp_path)
    assert found == board.Readings()
    assert (board.driver(tmp_path), board.identify(tmp_path)) == (None, board.Board(None, None))
    hostile = dict.fromkeys(BOARD, "9" * 100_000)
    assert board.readings(tree(tmp_path, hostile), 7).npu_load == ()


def test_a_prediction_is_for_this_board_or_says_for_which(tiny_bundles: Mapping[str, Path]) -> None:
    bundle = bundles.read(tiny_bundles["w8a8"])
    here = board.predicted(bundle, board.Board("x", "orange-pi-5"))
    assert here is not None and (here["board"], here["is_this_board"]) == ("Orange Pi 5", True)
    there = board.predicted(bundle, board.Board(None, None))
    assert there is not None and (there["board"], there["is_this_board"]) == ("Radxa Rock 5B", False)
    assert there["decode_tok_s"]["low"] < there["decode_tok_s"]["value"] < there["decode_tok_s"]["high"]
    assert board.predicted(bundles.read(tiny_bundles["fp16"]), board.Board(None, None)) is None


def test_times_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Figures()
    clock = iter([10.0, 13.0, 15.0])
    monkeypatch.setattr(figures, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    timing = Timing(found)
    timing.first_token()
    timing.first_token()  # only the first counts
    told = timing.end(20, 11, Durations(0, 2 * 10**9, 2 * 10**9))
    assert told == {"first_token_s": 3.0, "waited_s": 1.0, "tokens_per_s": 5.0}
    assert (found.mean_prefill, found.mean_decode) == (10.0, 5.0)
    assert dict(found.first_token_s.buckets())["2.5"] == 0 and dict(found.first_token_s.buckets())["5.0"] == 1
    assert found.waiting_s.sum == 1.0 and found.answer_s.sum == 5.0


class Item(NamedTuple):
    number: int
    owner: str
    background: bool = False


def test_a_place_is_when_it_is_taken() -> None:
    """Whatever has been pushed: the place of each is the number of pops until it comes."""
    queue: FairQueue[Item] = FairQueue()
    items = [Item(n, "abcab"[n % 5] if n % 3 else "a", n % 4 == 0) for n in range(24)]
    for item in items:
        queue.push(item)
    queue.pop()  # owners have had unlike turns
    returned = Item(99, "b")
    queue.push_first(returned)
    waiting = [item for item in (*items, returned) if queue.place(item) is not None]
    places = {item: queue.place(item) for item in waiting}
    assert len(waiting) == len(queue) == 24
    for turn in range(1, 25):
        taken = queue.pop()
        assert taken is not None and places[taken] == turn, (turn, taken)
    assert queue.place(items[0]) is None


def test_everything_is_counted(tiny_bundles: Mapping[str, Path]) -> None:
    with served(tiny_bundles["w8a8"], FakeEngine) as fake:
        assert fake.chat("say one|two").status == 200
        assert fake.chat("break half", stream=True).status == 200
        assert [fake.chat(say).status for say in ("full", "full", "down")] == [429, 429, 503]
        assert fake.get("/nowhere/at/all").status == 404
        stats = fake.get("/stats").json
        text = fake.get("/metrics").body.decode()
    assert stats["refusals"] == {"queue_full": 2, "model_unavailable": 1, "answer_failed": 1}
    assert stats["runtime"]["simulated"] is True and stats["model"]["dtype"] == "w8a8"
    assert stats["measured"]["answers"] == 2 and stats["measured"]["completion_tokens"] == 3
    values = parsed(text)
    assert values['rkchatd_refusals_total{reason="queue_full"}'] == 2
    assert values['rkchatd_requests_total{path="/v1/chat/completions",status="429"}'] == 2
    assert values['rkchatd_requests_total{path="other",status="404"}'] == 1
    assert values['rkchatd_answers_total{ended="stop"}'] == values['rkchatd_answers_total{ended="answer_failed"}'] == 1
    assert values["rkchatd_completion_tokens_total"] == 3
    assert values["rkchatd_time_to_first_token_seconds_count"] == 2
    assert values['rkchatd_state{state="ready"}'] == 1 and values["rkchatd_queued"] == 0


def test_paths_and_reasons_that_clients_make_up_are_not_kept(tiny_bundles: Mapping[str, Path]) -> None:
    with served(tiny_bundles["w8a8"], FakeEngine) as fake:
        for number in range(20):
            fake.get(f"/{number}")
            fake.chat(model=f"m{number}")
        values = parsed(fake.get("/metrics").body.decode())
    assert values['rkchatd_requests_total{path="other",status="404"}'] == 20
    assert len([name for name in values if name.startswith("rkchatd_re")]) < 15


def parsed(text: str) -> dict[str, float]:
    """Samples as Prometheus' own parser reads them, by name and labels."""
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f'{key}="{value}"' for key, value in sorted(sample.labels.items()))
            found[sample.name + (f"{{{labels}}}" if labels else "")] = sample.value
    return found


def test_over_the_twin_with_a_place_in_the_queue(tiny_bundles: Mapping[str, Path]) -> None:
    with served(tiny_bundles["w8a8"], WorkerEngine) as running:
        until(lambda: running.get("/ready").status == 200)
        assert running.chat("hello", max_tokens=5).status == 200
        found = running.get("/stats?request=nobody's").json
        assert found["place"] is None and found["restarts"] == 0
        assert found["measured"]["decode_tok_s"] > 0 and found["measured"]["prefill_tok_s"] > 0
        assert set(found["now"]["resident"]) == {"supervisor", "worker"}


def all_metrics() -> set[str]:
    """Names of every sample there can be."""
    full = Figures()
    full.add_request("/", 429, {"error": "queue_full", "ended": "stop"})
    readings = board.Readings((1.0,), (board.Clock("npu", 1, 1, ""),), {"soc": 1.0}, {"total": 1}, {"worker": 1})
    content, _ = metrics.text(full, Status("ready"), {"model": "m"}, readings)
    return {name.partition("{")[0] for name in parsed(content.decode())}


def test_the_dashboard_asks_for_what_there_is() -> None:
    dashboard = json.loads((MONITORING / "grafana-dashboard.json").read_text())
    known = all_metrics()
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    assert len(expressions) >= 10
    used = {name for each in expressions for name in re.findall(r"\brkchatd_\w+", each)}
    assert used <= known, used - known
    # And of all that is told, everything but where time begins and which states there are is shown.
    assert known - used <= {"rkchatd_start_time_seconds"} | {n for n in known if n.endswith(("_count", "_sum"))}
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24 and panel["title"]


def test_the_scrape_configuration_is_one() -> None:
    read = yaml.safe_load((MONITORING / "prometheus.yml").read_text())
    (job,) = read["scrape_configs"]
    assert job["metrics_path"] == "/metrics" and job["static_configs"][0]["targets"]
    assert job["authorization"]["credentials_file"]
    assert set(job) <= {"job_name", "metrics_path", "scrape_interval", "authorization", "static_configs"}
