"""Shapes and parameter counts, the formula against what was published, and `rk3588 predict`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st

from rk3588 import boards, bundle, predict, shape
from rk3588.commands.predict import command
from rk3588.errors import CheckpointError, TargetError, UsageError
from rk3588.predict import Workload
from rk3588.shape import Shape
from tests.bench import predict_fit, predict_table

GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "param_counts.json").read_text(encoding="utf-8"))
SOC = boards.catalogue().socs["RK3588"]
TINY = Shape("TinyLlama", 22, 2048, 5632, 32, 4, 64, 32000, False, 2048, 4096)
SMOL = Shape("SmolLM2", 30, 576, 1536, 9, 3, 64, 49152, True, 8192, 1152)
CONFIG: dict[str, Any] = GOLDEN[0]["config"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """TinyLlama's config.json in a folder, and nobody's hosts.yaml in sight."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv(boards.VARIABLE, raising=False)
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "TinyLlama"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(CONFIG), encoding="utf-8")
    return path


def run(*arguments: object) -> Result:
    return CliRunner().invoke(command, [str(a) for a in arguments])


def said(result: Result, kind: type[BaseException]) -> str:
    assert isinstance(result.exception, kind), result.output
    assert result.stdout == ""
    return str(result.exception)


# --- shapes


@pytest.mark.parametrize("entry", GOLDEN, ids=lambda e: e["name"])
def test_parameters_are_counted_as_transformers_does(entry: dict[str, Any]) -> None:
    assert shape.from_config(entry["config"], Path("m/config.json")).total_params == entry["parameters"]


# Qwen2-7B is the language model inside MiniCPM-V, with a vocabulary of its own; the last two are model_types apart.
SAME_AS_GOLDEN = {
    "TinyLLAMA-1.1B": "TinyLlama-1.1B",
    "Qwen2-1.5B": "Qwen2-1.5B",
    "Qwen2-0.5B": "Qwen2-0.5B",
    "Phi-3-3.8B": "Phi-3-mini",
    "Gemma2-2B": "Gemma-2-2B",
    "llama3-8B": "Llama-3-8B",
    "Qwen3-0.6B": "Qwen3-0.6B",
    "InternLM2-1.8B": "InternLM2-1.8B",
    "ChatGLM3-6B": "ChatGLM3-6B",
}


@pytest.mark.parametrize("model", SAME_AS_GOLDEN)
def test_the_published_rows_have_the_sizes_of_their_configs(model: str) -> None:
    """The data that was fitted and the code that predicts mean the same by weights, lm_head and KV cache."""
    config = next(e["config"] for e in GOLDEN if e["name"] == SAME_AS_GOLDEN[model])
    found = shape.from_config(config, Path("m/config.json"))
    rows = [r for r in predict_fit.rows() if r.model == model]
    assert rows
    for row in rows:
        sizes = (row.layers, row.linear_params, row.lm_head_params, row.kv_bytes_per_token)
        assert sizes == (found.layers, found.linear_params, found.lm_head_params, found.kv_bytes_per_token)


WRONG: list[tuple[object, str]] = [
    ([1], "holds no JSON object"),
    ({**CONFIG, "model_type": "mixtral"}, "model_type 'mixtral' is not known here; known are llama, mistral"),
    ({**CONFIG, "model_type": ["llama"]}, "is not known here"),
    ({**CONFIG, "hidden_size": None}, "does not say hidden_size"),
    ({"model_type": "internlm2", "hidden_size": 64}, "does not say num_attention_heads"),  # known to its own code only
    ({**CONFIG, "hidden_size": "2048"}, "hidden_size is '2048'; it has to be a whole number"),
    ({**CONFIG, "vocab_size": True}, "vocab_size is True"),
    ({**CONFIG, "num_hidden_layers": 0}, "num_hidden_layers is 0"),
    ({**CONFIG, "num_hidden_layers": 1 << 40}, "num_hidden_layers is 1099511627776"),
    ({**CONFIG, "num_attention_heads": 4096}, "4096 attention heads do not go into a hidden_size of 2048"),
    ({**CONFIG, "num_key_value_heads": 5}, "32 attention heads cannot share 5 key-value heads"),
    ({**CONFIG, "tie_word_embeddings": "no"}, "tie_word_embeddings is 'no'; it has to be true or false"),
]


@pytest.mark.parametrize(("config", "message"), WRONG, ids=[m for _, m in WRONG])
def test_a_config_that_is_wrong_is_refused_in_a_sentence(config: object, message: str, folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    text = said(run(folder), CheckpointError)
    assert message in text
    assert "config.json" in text
    assert "\n" not in text


def test_what_is_no_model_is_refused(folder: Path) -> None:
    assert "has no config.json and no rkbundle.json" in said(run(folder.parent), CheckpointError)
    assert "there is no nowhere: give a bundle, a Hugging Face folder or its" in said(run("nowhere"), UsageError)
    assert "there is no nowhere.json" in said(run("nowhere.json"), UsageError)
    (folder / "config.json").write_text("{", encoding="utf-8")
    assert "cannot read TinyLlama/config.json: Expecting" in said(run(folder.name), CheckpointError)
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    assert "config.json is a FIFO" in said(run(folder), CheckpointError)


def test_ram(folder: Path) -> None:
    text = run(folder, "--board", "rock-5b", "--ram", "8").stdout
    assert "fits 8 GB" in text and "from 4 GB" not in text
    (found, *_) = json.loads(run(folder, "--board", "rock-5b", "--ram", "8", "--json").stdout)
    assert found["fits"] == {"8": True}
    assert "--ram 3: the Radxa Rock 5B has 4, 8" in said(run(folder, "--board", "rock-5b", "--ram", "3"), UsageError)
    assert "no board is known that has it" in said(run(folder, "--ram", "1000"), UsageError)
    assert all(list(one["fits"]) == ["32"] for one in json.loads(run(folder, "--ram", "32", "--json").stdout))


def test_a_bundle_is_read_from_its_manifest(tiny_bundles: Mapping[str, Path], folder: Path) -> None:
    del folder
    path = tiny_bundles["w8a8_g128"]
    facts = bundle.read(path).manifest["model"]
    assert shape.load(path).total_params == facts["parameters"]
    found = json.loads(run(path, "--board", "rock-5b", "--prompt", "8", "--json").stdout)
    assert [f["dtype"] for f in found] == ["w8a8_g128"]  # its own
    text = said(run(tiny_bundles["fp32"]), UsageError)
    assert "is fp32, for which no speed on an RK3588 has been published: give a --dtype" in text
    assert run(tiny_bundles["fp32"], "--prompt", "8", "--dtype", "w8a8").exit_code == 0


# --- the formula


def test_the_coefficients_are_what_the_fit_gives() -> None:
    found = json.loads(json.dumps(predict_fit.coefficients()))
    assert found == json.loads(predict_fit.OUT.read_text(encoding="utf-8"))


def test_the_fit_is_the_one_known() -> None:
    """Computed independently with NumPy's lstsq when the formula was chosen."""
    fit = predict.coefficients()
    assert fit["decode"]["bandwidth_gb_s"] == pytest.approx(29.68, rel=1e-3)
    assert fit["decode"]["layer_ms"] == pytest.approx(0.289, rel=5e-3)
    assert fit["prefill"]["ms_per_giga_weight"] == pytest.approx(1.994, rel=1e-3)
    assert fit["prefill"]["layer_ms"] == pytest.approx(1.743, rel=1e-3)
    assert fit["memory"]["bytes_per_weight"] == pytest.approx(1.004, rel=1e-3)
    assert fit["memory"]["bytes_per_weight"] + fit["memory"]["bytes_per_embedding"] == pytest.approx(5.43, rel=1e-3)


@pytest.mark.parametrize(("p", "freedom", "value"), [(0.95, 3, 2.353), (0.95, 14, 1.761), (0.975, 10, 2.228)])
def test_students_t_is_that_of_the_tables(p: float, freedom: int, value: float) -> None:
    assert predict_fit.student_t(p, freedom) == pytest.approx(value, abs=5e-4)


CHECKS = predict_table.checks([predict_table.errors(row) for row in predict_fit.rows()])


@pytest.mark.parametrize("check", CHECKS, ids=lambda c: c.name)
def test_prediction_keeps_its_promises(check: predict_table.Check) -> None:
    assert check.most is None or 0 < check.found <= check.most


def test_nothing_promised_was_left_out() -> None:
    promised = {c.name: c.most for c in CHECKS if c.most is not None}
    assert promised["w8a8 decode, median"] == 0.04
    assert promised["w8a8 decode, worst"] == 0.10
    assert promised["w8a8 decode, its model left out of the fit, median"] == 0.05
    assert promised["w8a8 TTFT, median"] == 0.12
    assert promised["memory of runtime 1.1.1, worst"] == 0.05
    assert promised["w8a8_g512 decode, worst"] == 0.06


def test_one_prediction_by_hand() -> None:
    """TinyLlama, w8a8: each term worked out from the documented formula and the rounded coefficients."""
    found = predict.predict(TINY, "w8a8", Workload(prompt=64, answer=256, context=320), SOC)
    moved = 968_884_224 + 65_536_000 + 22_528 * (64 + 128)
    assert 1e3 / found.decode_tok_s.value == pytest.approx(moved / 29.682e6 + 0.28949 * 22)
    assert found.ttft_ms.value == pytest.approx(1.9941 * 0.968884224 * 64 + 1.7425 * 22)
    assert found.prefill_tok_s.value == pytest.approx(64e3 / found.ttft_ms.value)
    assert found.memory.kv == 22_528 * 320
    assert found.memory.total == sum(
        (found.memory.weights, found.memory.embedding, found.memory.kv, found.memory.runtime)
    )
    assert found.notes == ()


sizes = st.builds(
    Shape,
    name=st.just("any"),
    layers=st.integers(1, 100),
    hidden=st.integers(1, 64).map(lambda n: n * 128),
    intermediate=st.integers(1, 200).map(lambda n: n * 128),
    heads=st.integers(1, 64),
    kv_heads=st.integers(1, 8),
    head_dim=st.sampled_from([64, 128, 256]),
    vocab=st.integers(1000, 300_000),
    tied=st.booleans(),
)
work = st.builds(
    Workload,
    prompt=st.integers(1, 4000),
    context=st.just(4096),
    cores=st.sampled_from([1, 2, 3]),
    ddr_mhz=st.none() | st.integers(200, 4000),
)


@given(sizes, work, st.sampled_from(predict.PREDICTED))
def test_every_estimate_lies_inside_its_interval(model: Shape, asked: Workload, dtype: str) -> None:
    found = predict.predict(model, dtype, asked, SOC)
    for estimate in (found.decode_tok_s, found.prefill_tok_s, found.ttft_ms):
        assert 0 < estimate.low <= estimate.value <= estimate.high


@given(sizes, work, st.sampled_from(predict.PREDICTED))
def test_more_is_slower_and_larger(model: Shape, asked: Workload, dtype: str) -> None:
    one = predict.predict(model, dtype, asked, SOC)
    two = predict.predict(replace(model, layers=model.layers + 1), dtype, asked, SOC)
    assert two.decode_tok_s.value < one.decode_tok_s.value
    assert two.ttft_ms.value > one.ttft_ms.value
    assert two.memory.total > one.memory.total
    assert predict.predict(model, "w8a8", asked, SOC).decode_tok_s.high >= one.decode_tok_s.high


@given(st.integers(200, 2112), st.integers(200, 2112))
def test_a_faster_memory_never_decodes_slower(a: int, b: int) -> None:
    slow, fast = (
        predict.predict(TINY, "w8a8", Workload(ddr_mhz=mhz), SOC).decode_tok_s.value for mhz in sorted((a, b))
    )
    assert slow <= fast


def test_the_highest_clock_is_where_it_was_measured() -> None:
    assumed = predict.predict(TINY, "w8a8", Workload(), SOC).decode_tok_s
    asked = predict.predict(TINY, "w8a8", Workload(ddr_mhz=2112), SOC).decode_tok_s
    assert asked.value == pytest.approx(assumed.value)
    assert asked.low < assumed.low  # boards at this clock differ
    measured = predict.predict(TINY, "w8a8", Workload(bandwidth_gb_s=29.682), SOC).decode_tok_s
    assert astuple(measured) == pytest.approx(astuple(assumed))


EXTRAPOLATIONS = [
    (SMOL, "w8a8", Workload(), "one model has been published (SmolLM2-135M"),
    (SMOL, "w8a8", Workload(), "runtime 1.1.1's memory is published from 1 G weights up"),
    (replace(TINY, layers=400), "w8a8", Workload(), "the largest published model has 7.0 G weights"),
    (TINY, "w8a8_g128", Workload(), "g128: four published models, which differ widely"),
    (TINY, "w8a8_g256", Workload(), "no figures for g256 are published"),
    (TINY, "w8a8", Workload(ddr_mhz=528), "slower memory clocks"),
    (TINY, "w8a8", Workload(ddr_mhz=2400), "nothing is known above 2112 MHz"),
    (TINY, "w8a8", Workload(bandwidth_gb_s=10), "measured at about 30 GB/s"),
    (TINY, "w8a8", Workload(cores=1), "fewer than three cores"),
    (TINY, "w8a8", Workload(prompt=1000), "published prompts have 64 to 196 tokens"),
    (TINY, "w8a8", Workload(context=8192), "within 4096 tokens of context only"),
    (replace(TINY, layers=100), "w8a8", Workload(), "4 GiB of one NPU address space"),
]


@pytest.mark.parametrize(("model", "dtype", "asked", "note"), EXTRAPOLATIONS, ids=[e[3] for e in EXTRAPOLATIONS])
def test_it_says_when_it_goes_beyond_what_is_known(model: Shape, dtype: str, asked: Workload, note: str) -> None:
    assert note in " ".join(predict.predict(model, dtype, asked, SOC).notes)
    assert note not in " ".join(predict.predict(TINY, "w8a8", Workload(), SOC).notes)


def test_intervals_widen_where_less_is_known() -> None:
    def width(model: Shape, dtype: str, asked: Workload) -> float:
        speed = predict.predict(model, dtype, asked, SOC).decode_tok_s
        return speed.high / speed.low

    usual = width(TINY, "w8a8", Workload())
    assert width(SMOL, "w8a8", Workload()) > usual
    assert width(TINY, "w8a8_g128", Workload()) > 2 * usual
    assert width(TINY, "w8a8_g256", Workload()) > 2 * usual
    assert width(TINY, "w8a8", Workload(cores=1)) > 2 * usual


# --- the command


def test_json_has_what_is_promised(folder: Path) -> None:
    asked = "--board rock-5b --board khadas-edge2 --dtype w8a8 --dtype w8a8_g512"
    found = json.loads(run(folder, "--json", *asked.split()).stdout)
    assert [(f["board"], f["dtype"]) for f in found] == [
        ("rock-5b", "w8a8"), ("rock-5b", "w8a8_g512"), ("khadas-edge2", "w8a8"), ("khadas-edge2", "w8a8_g512"),
    ]  # fmt: skip
    for f in found:
        for speed in ("decode_tok_s", "prefill_tok_s", "ttft_ms"):
            assert set(f[speed]) == {"value", "low", "high"}
        assert f["memory_bytes"] == sum(f["memory"].values())
    assert found[2]["fits"] == {"8": True, "16": True}


def test_context_and_memory_of_a_host(folder: Path) -> None:
    text = "hosts: {small: {board: rock-5c, ram_gb: 2}, larger: {board: rock-5c, ram_gb: 3}}"
    Path("hosts.yaml").write_text(text, encoding="utf-8")
    both = ("--json", "--board", "small", "--board", "larger", "--dtype", "w8a8")
    more, less = (json.loads(run(folder, *both, "--context", n).stdout) for n in (4096, 256))
    assert more[0]["memory"]["kv"] - less[0]["memory"]["kv"] == (4096 - 256) * 22528
    assert [f["fits"] for f in more] == [{"2": False}, {"3": True}]


def test_the_memory_of_a_board_can_be_said(folder: Path) -> None:
    arguments = (folder, "--board", "orange-pi-5", "--ram", 8, "--dtype", "w8a8")
    (row,) = json.loads(run(*arguments, "--json").stdout)
    assert list(row["fits"]) == ["8"]
    assert "--board orange-pi-5 --ram 8" in said(run(folder, "--board", "orange-pi-5-8gb"), UsageError)


def test_text_shows_intervals_parts_and_boards(folder: Path) -> None:
    text = run(folder, "--prompt", "64").stdout
    assert text.startswith("TinyLlama: 1,100.0 M parameters; prompt 64, context 4096 tokens\n")
    assert "Radxa Rock 5B           fits from 4 GB" in text
    assert "w8a8_g128" in text
    assert "g128: four published models" in text
    only = run(folder, "--board", "rock-5b", "--dtype", "w8a8").stdout
    assert "Orange Pi" not in only
    assert "g128" not in only


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dtype", "w8a8_g64"], "unknown dtype 'w8a8_g64': choose one of w8a8, w8a8_g128"),
        (["--dtype", "fp16"], "no speed of fp16 on an RK3588 has been published"),
        (["--board", "rock5b"], "unknown board 'rock5b': did you mean 'rock-5b'?"),
        (["--cores", "4"], "4 NPU cores: the RK3588"),
        (["--prompt", "0"], "have to be 1 token or more"),
        (["--prompt", "4093"], "a prompt of 4093 tokens does not go into a context of 4096"),
        (["--ddr", "528", "--bandwidth", "10"], "the memory's clock or its measured bandwidth, not both"),
        (["--ddr", "0"], "0 MHz is no clock of this memory"),
        (["--bandwidth", "nan"], "nan GB/s is no bandwidth of this memory"),
        (["--bandwidth", "-1"], "-1 GB/s is no bandwidth"),
        (["--plot", "x.pdf"], "has to end in .png or .svg"),
    ],
)
def test_bad_arguments_are_refused(arguments: list[str], message: str, folder: Path) -> None:
    text = said(run(folder, *arguments), UsageError)
    assert message in text
    assert "\n" not in text


def test_plot_without_matplotlib_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "pip install 'rk3588[plot]'" in said(run(folder, "--plot", "x.png"), UsageError)
    assert not Path("x.png").exists()


@pytest.mark.parametrize(("suffix", "magic"), [("png", b"\x89PNG"), ("svg", b"<?xml")])
def test_plot_draws(suffix: str, magic: bytes, folder: Path) -> None:
    pytest.importorskip("matplotlib", reason="needs the extra [plot]")
    result = run(folder, "--plot", f"x.{suffix}", "--dtype", "w8a8")
    assert result.exit_code == 0, result.exception
    assert Path(f"x.{suffix}").read_bytes().startswith(magic)
    assert f"drew x.{suffix}" in result.stderr
    assert "no folder gone" in said(run(folder, "--plot", f"gone/x.{suffix}"), TargetError)


def test_predicting_imports_nothing_heavy() -> None:
    program = (
        "import sys; import rk3588.commands.predict, rk3588.commands.board;"
        "print(sorted({'numpy', 'matplotlib', 'transformers', 'torch', 'gguf', 'jinja2'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
