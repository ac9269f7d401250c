"""``rkconvert recommend``: what it measures, predicts, advises and refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from click.testing import CliRunner, Result

from rk3588 import boards, bundle, predict
from rk3588.errors import BoardError, CheckpointError, TargetError, UsageError, WrongModel
from rk3588.predict import Workload
from rk3588.shape import Shape
from rkconvert import accuracy, memory
from rkconvert.cli import cli, main
from rkconvert.memory import Memory
from rkconvert.recommend import advice, cpu, measuring
from rkconvert.recommend.advice import Limits, Row
from rkconvert.recommend.variants import VARIANTS, Variant, predicted
from tests import models
from tests.hub_calls import run_here
from tests.hub_server import Hub, serve

TEXT = "The quick brown fox jumps over the lazy dog. " * 30
ROCK = ("--board", "rock-5b", "--ram", "8")
OPTIONS = ("dtype", "hybrid_rate", "rotate", "smooth")
KEYS = {
    *OPTIONS, "kl", "kl_interval", "top1", "perplexity", "decode_tok_s", "ttft_ms",
    "memory_bytes", "fits", "toolkit_obstacle", "misses",
}  # fmt: skip
LLAMA8B = Shape("big", 32, 4096, 14336, 32, 8, 128, 128256, False, 8192)


class Place(NamedTuple):
    """A model whose layers groups of 128 divide, one where they do not, a text, and the folder for temporary files."""

    even: Path
    odd: Path
    text: Path
    scratch: Path


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Place:
    folder = tmp_path_factory.mktemp("recommend")
    even = models.tiny_llama(folder / "Even", hidden=512, heads=8, kv_heads=2, head_dim=64, intermediate=512)
    odd = models.tiny_llama(folder / "Odd")
    (folder / "read.txt").write_text(TEXT)
    return Place(even, odd, folder / "read.txt", folder)


@pytest.fixture
def place(made: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv(boards.VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "scratch"))
    return made._replace(scratch=tmp_path / "scratch")


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli, ["recommend", *map(str, arguments)])


def found(*arguments: object) -> dict[str, Any]:
    done = run(*arguments, "--json")
    assert done.exit_code == 0, (done.output, done.exception)
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


def test_every_variant_is_measured_and_predicted_and_the_best_is_advised(place: Place, tmp_path: Path) -> None:
    facts = found(place.even, *ROCK, "--tokens", 60, "--text", place.text)
    assert [Variant(*(row[name] for name in OPTIONS)) for row in facts["rows"]] == list(VARIANTS)
    assert all(set(row) == KEYS and row["fits"] and row["toolkit_obstacle"] is None for row in facts["rows"])
    assert (facts["board"], facts["ram_gb"], facts["tokens"], facts["text"]) == ("rock-5b", 8, 60, "read.txt")
    assert (facts["reference"], facts["max_kl"], facts["min_tok_s"]) == ("fp32", 0.05, None)
    fastest = min(facts["rows"][:3], key=lambda row: row["kl"])  # groups make nothing faster, rotation nothing slower
    assert facts["choice"] == {key: fastest[key] for key in OPTIONS}
    assert facts["advice"].startswith("take --dtype w8a8")
    assert "for a Radxa Rock 5B with 8 GB: about " in facts["advice"]

    build = ["build", str(place.even), "-o", str(tmp_path)]
    w8a8 = "--dtype=w8a8"
    for more in ([w8a8, "--dtype=w8a8_g128", "--dtype=fp32"], [w8a8, "--rotate"], [w8a8, "--rotate", "--smooth"]):
        assert CliRunner().invoke(cli, [*build, *more]).exit_code == 0
    names = ("w8a8", "w8a8-rotated", "w8a8-rotated-smooth", "w8a8_g128", "fp32")
    *others, truth = (bundle.read(tmp_path / f"Even-rk3588-{name}") for name in names)
    texts, _ = accuracy.load([place.text])
    for row, own in zip(facts["rows"], accuracy.measure(others, truth, texts, 60)):
        assert (row["kl"], row["top1"], row["perplexity"]) == pytest.approx((own.kl, own.top1, own.perplexity))
    assert list(place.scratch.iterdir()) == []


def test_text_says_it_in_a_line_with_the_table_behind_it(place: Place) -> None:
    done = run(place.odd, *ROCK, "--tokens", 40)
    assert done.exit_code == 0, (done.output, done.exception)
    first, _, head, *rest = done.stdout.splitlines()
    assert first.startswith("Odd: take --dtype w8a8") and "KL " in first and "of next tokens are fp32's" in first
    assert head.split()[:3] == ["KL", "to", "fp32"]
    assert [line.startswith("→ w8a8 ") for line in rest[:3]].count(True) == 1
    assert "w8a8_g128" in rest[3] and "would not build it: K = 64, 160 is not a multiple of 128" in rest[3]
    assert rest[len(VARIANTS)].startswith("  llama.cpp 4-bit")
    assert "measuring 13 variants on 40 tokens: about 1 minute" in done.stderr and "GB of disk" in done.stderr
    assert "rkconvert's built-in text" in done.stdout


def test_what_the_toolkit_refuses_is_not_advised(place: Place) -> None:
    """However accurate: of this model, groups are what keeps the limit."""
    rows = found(place.odd, *ROCK, "--tokens", 60, "--text", place.text)["rows"]
    plain = min(row["kl"] for row in rows if not row["toolkit_obstacle"])
    grouped = min(row["kl"] for row in rows if row["toolkit_obstacle"])
    assert grouped < plain
    facts = found(place.odd, *ROCK, "--tokens", 60, "--text", place.text, "--max-kl", (grouped + plain) / 2)
    assert facts["choice"] is None
    assert facts["advice"].startswith("nothing keeps all limits on a Radxa Rock 5B with 8 GB: --dtype ")
    facts = found(place.odd, *ROCK, "--predict-only", "--min-tok-s", 1e6)
    assert "tok/s are fewer than 1e+06" in facts["advice"] and facts["choice"] is None
    assert facts["tokens"] == 0 and all(row["kl"] is None for row in facts["rows"])


def test_too_little_memory_here_is_said_and_only_predicted(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "machine", lambda: Memory(1 << 20, 0, 1 << 20))
    done = run(place.even, *ROCK)
    assert done.exit_code == 0, (done.output, done.exception)
    assert "- Not measured: this machine has too little memory to run the model, in fp16 too." in done.stdout
    assert "its accuracy was not measured" in done.stdout and "measuring" not in done.stderr


def test_fp16_is_the_reference_where_fp32_is_too_large(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    from rkconvert.sources.opening import open_source

    source = open_source(place.even)
    whole = measuring.costs(source, VARIANTS[:1], 60)
    assert whole is not None and whole.reference == "fp32"
    monkeypatch.setattr(memory, "machine", lambda: Memory(0, 0, whole.memory - 1))
    less = measuring.costs(source, VARIANTS[:1], 60)
    assert less is not None and less.reference == "fp16" and less.memory < whole.memory
    monkeypatch.setattr(memory, "machine", lambda: Memory(0, 0, less.memory - 1))
    assert measuring.costs(source, VARIANTS[:1], 60) is None


def test_batches_are_as_large_as_there_is_room() -> None:
    some = VARIANTS[:4]
    assert measuring.batches(some, [10, 10, 10, 10], 25) == (some[:2], some[2:])
    assert measuring.batches(some, [10, 10, 10, 10], 100) == (some,)
    assert measuring.batches(some, [10, 10, 10, 10], 5) == tuple((each,) for each in some)


def test_a_family_that_cannot_be_rotated_has_no_rotated_rows(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rkconvert.recommend.variants.rotation_obstacle", lambda _: "its norms do not allow it")
    facts = found(place.even, *ROCK, "--predict-only")
    assert [row["rotate"] for row in facts["rows"]] == [None] * 7
    assert "Not rotated: its norms do not allow it." in facts["notes"]


def test_what_does_not_fit_the_board_is_said_and_not_measured(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, _, _, *others = (row["memory_bytes"] for row in found(place.even, *ROCK, "--predict-only")["rows"])
    assert plain < min(others)
    monkeypatch.setattr(predict, "SYSTEM_BYTES", (8 << 30) - plain)
    facts = found(place.even, *ROCK, "--tokens", 60, "--text", place.text)
    assert [(row["fits"], row["kl"] is not None) for row in facts["rows"]] == 3 * [(True, True)] + 10 * [(False, False)]
    assert facts["choice"]["dtype"] == "w8a8"
    assert "does not fit 8 GB" in run(place.even, *ROCK, "--predict-only").stdout


def test_nothing_is_left_behind_when_it_is_stopped(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[int] = []

    @contextmanager
    def shown() -> Iterator[Callable[[str, int, int], None]]:
        def update(_what: str, done: int, _total: int) -> None:
            steps.append(done)
            if done > 3_500:  # reading
                assert list(place.scratch.iterdir())
                raise KeyboardInterrupt

        yield update

    monkeypatch.setattr("rkconvert.recommend.commands.shown", shown)
    monkeypatch.setattr("rkconvert.recommend.commands.possible", lambda _: (VARIANTS[:2], []))
    done = run(place.even, *ROCK, "--tokens", 60, "--text", place.text)
    assert done.exit_code != 0 and steps == sorted(steps) and steps[0] == 0
    assert list(place.scratch.iterdir()) == []


def unknown_family(folder: Path) -> Path:
    path = models.tiny_llama(folder / "Strange")
    settings = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**settings, "model_type": "mamba", "architectures": ["MambaLM"]}))
    return path


def test_refusals(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "wrong.yaml").write_text("hosts: {a: {board: rock5b}}")
    refused: list[tuple[list[object], type[Exception], str]] = [
        ([place.even, "--board", "rock5b", "--ram", 8], UsageError, "unknown board 'rock5b': did you mean 'rock-5b'?"),
        ([place.even, "--board", "rock-5b"], UsageError, "the Radxa Rock 5B is sold with 4, 8, 16, 32 GB: say which"),
        ([place.even, "--board", "rock-5b", "--ram", 3], UsageError, "--ram 3: the Radxa Rock 5B has 4, 8, 16, 32 GB"),
        ([place.even, *ROCK, "--max-kl", "nan"], UsageError, "--max-kl nan has to be more than 0"),
        ([place.even, *ROCK, "--min-tok-s", "-1"], UsageError, "--min-tok-s -1 has to be more than 0"),
        ([place.even, *ROCK, "--bandwidth", "0"], UsageError, "0 GB/s is no bandwidth of this memory"),
        ([place.even, *ROCK, "--text", tmp_path / "gone.txt"], UsageError, "there is no "),
        ([place.even, *ROCK, "--text", tmp_path / "empty.txt"], UsageError, "is empty: give a text"),
        ([place.even, *ROCK, "--hosts", tmp_path / "wrong.yaml"], BoardError, "unknown board 'rock5b' of host 'a'"),
        (["./gone", *ROCK], UsageError, "./gone does not exist: give a Hugging Face folder or a GGUF file"),
        ([tmp_path / "scratch", *ROCK], CheckpointError, "config.json"),
        ([unknown_family(tmp_path), *ROCK], CheckpointError, "MambaLM"),
        ([place.text, *ROCK], WrongModel, "is neither a Hugging Face folder nor a GGUF file"),
    ]
    for arguments, kind, message in refused:
        done = run(*arguments)
        assert isinstance(done.exception, kind) and message in str(done.exception), (arguments, done.exception)
        assert done.stdout == "" and "\n" not in str(done.exception)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("rkconvert.recommend.measuring.shutil.disk_usage", lambda _: usage._replace(free=1000))
    done = run(place.even, *ROCK)
    assert isinstance(done.exception, TargetError) and "or set TMPDIR to another folder" in str(done.exception)
    assert list(place.scratch.iterdir()) == []


def test_a_host_brings_its_memory_and_its_speed(place: Place, tmp_path: Path) -> None:
    (tmp_path / "hosts.yaml").write_text("hosts: {kitchen: {board: rock-5c, ram_gb: 4, bandwidth_gb_s: 12.8}}")
    slow, usual = (found(place.even, "--predict-only", *where) for where in (("--board", "kitchen"), ROCK))
    assert (slow["board"], slow["ram_gb"]) == ("rock-5c", 4)
    assert slow["rows"][0]["decode_tok_s"]["value"] < usual["rows"][0]["decode_tok_s"]["value"]


def rows_of(sizes: Shape) -> list[Row]:
    board = boards.catalogue().board("rock-5b")
    return [Row(v, predicted(v, sizes, Workload(), board), None, None) for v in VARIANTS]


def test_a_model_that_no_ram_holds() -> None:
    rows, board = rows_of(LLAMA8B), boards.catalogue().board("rock-5b")
    text = advice.sentence(rows, None, Limits(8, None, 0.05), board)
    assert text.startswith("nothing fits a Radxa Rock 5B with 8 GB: the smallest needs 1") and text.endswith(" of RAM")
    assert advice.best(rows, Limits(16, None, 0.05)) is rows[0]
    assert advice.best(rows, Limits(16, 100.0, 0.05)) is None
    near = cpu.on_cpu(LLAMA8B, 4096)
    assert near is not None and near.nearest.model == "Qwen3.5-9B" and near.fits(8)
    assert "; llama.cpp with 4 bits on its CPU: about 2.9" in advice.sentence(rows, near, Limits(16, 1, 1), board)
    orange = boards.catalogue().board("orange-pi-5")
    assert "for an Orange Pi 5 with 16 GB" in advice.sentence(rows, None, Limits(16, 1, 1), orange)


def test_a_hybrid_lies_between_the_two_it_is_mixed_of() -> None:
    board = boards.catalogue().board("rock-5b")
    some = [predicted(Variant("w8a8", rate), LLAMA8B, Workload(), board) for rate in (0.0, 0.25, 0.5)]
    some.append(predicted(Variant("w8a8_g128"), LLAMA8B, Workload(), board))
    speeds = [p.decode_tok_s.value for p in some]
    assert speeds == sorted(speeds, reverse=True) and len(set(speeds)) == 4
    assert [p.memory.total for p in some] == sorted(p.memory.total for p in some)
    for mixed in some[1:3]:
        assert mixed.decode_tok_s.low == pytest.approx(some[3].decode_tok_s.low)
        assert mixed.decode_tok_s.high == pytest.approx(some[0].decode_tok_s.high)
        assert any("nobody published a speed of one" in note for note in mixed.notes)


def test_the_published_rows_of_llama_cpp() -> None:
    """Each with a link and 4 bits; a model far from all of them gets none, one of their sizes its own speed."""
    for row in cpu.published():
        assert row.url.startswith("https://") and row.decode_tok_s > 0 and row.quant.lstrip("I").startswith("Q4_")
    assert cpu.on_cpu(Shape("SmolLM2", 30, 576, 1536, 9, 3, 64, 49152, True, 8192, 1152), 4096) is None
    phi = cpu.on_cpu(Shape("Phi-3", 32, 3072, 8192, 32, 32, 96, 32064, False, 4096, 6144), 4096)
    assert phi is not None and phi.nearest.model == "Phi-3-mini-4k"
    assert phi.decode_tok_s.value == pytest.approx(6.92, rel=0.03)
    assert phi.decode_tok_s.low < phi.decode_tok_s.value <= phi.decode_tok_s.high
    # A plain transformer's row comes before a nearer one of another architecture.
    qwen = cpu.on_cpu(Shape("Qwen2.5-0.5B", 24, 896, 4864, 14, 2, 64, 151936, False, 32768), 4096)
    assert qwen is not None and qwen.nearest.model == "Granite-4.0-350M"
    assert qwen.decode_tok_s.value == pytest.approx(55.2 * 350 / 494, rel=1e-2)
    assert qwen.fits(2) and qwen.memory > 630e6 * 0.6


def test_a_model_on_the_hub_is_predicted_by_its_headers_and_downloaded_to_be_measured(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rkconvert.recommend.commands.possible", lambda _: (VARIANTS[:2], []))  # is quicker
    with serve(Hub({"user/even": place.even})) as hub:
        words = ("recommend", "user/even", *ROCK, "--json")
        done = run_here(main, hub, tmp_path / "home", *words, "--predict-only")
        assert done.returncode == 0, done.stderr
        facts = json.loads(done.stdout)
        assert facts["model"] == "even" and facts["tokens"] == 0
        assert not list((tmp_path / "home").rglob("*.safetensors"))
        done = run_here(main, hub, tmp_path / "home", *words, "--tokens", "40", "--text", place.text)
        assert done.returncode == 0, done.stderr
        measured = json.loads(done.stdout)
        assert measured["tokens"] == 40 and list((tmp_path / "home").rglob("*.safetensors"))
        assert [row["decode_tok_s"] for row in measured["rows"]] == [row["decode_tok_s"] for row in facts["rows"]]
