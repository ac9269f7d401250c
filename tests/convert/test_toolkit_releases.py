"""The releases of rkllm-toolkit, 1.1.0 to 1.3.1: what each is given, and what is refused of one that lacks it. Over
doubles that take what each takes, side by side as a user has them."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from rk3588 import bundle, compatibility
from rk3588.errors import ToolkitError, UsageError
from rkconvert.build import convert
from rkconvert.request import Request
from rkconvert.toolkit import install as installs
from rkconvert.toolkit import releases
from tests import loras, models, toolkit_double

WIDE = {"hidden": 256, "intermediate": 512, "heads": 4, "kv_heads": 2, "head_dim": 64}
ALL = ("1.1.4", "1.2.0", "1.2.3", "1.3.1")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("releases")
    for release in ALL:
        toolkit_double.put(root, f"{release}+double")
    return root


@pytest.fixture
def user(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Whose toolkits these are."""
    monkeypatch.setenv("XDG_DATA_HOME", str(home / "data"))
    monkeypatch.setenv("XDG_STATE_HOME", str(home / "state"))
    return home


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.tiny_llama(tmp_path_factory.mktemp("source") / "tiny", **WIDE)  # type: ignore[arg-type]


def changed(model: Path, folder: Path, **settings: Any) -> Path:
    """The same with other settings in its config.json."""
    folder.mkdir()
    for file in model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **settings}))
    return folder


def built(model: Path, out: Path, **options: Any) -> bundle.Bundle:
    request = Request(targets=("rk3588",), **options)
    request.check()
    (folder,) = convert(request.plan(request.open(model), "tiny", out))
    found = bundle.read(folder)
    bundle.verify(found)
    return found


def refused(model: Path, **options: Any) -> str:
    with pytest.raises(Exception) as caught:
        built(model, Path("/nowhere"), **options)
    return str(caught.value)


@pytest.mark.usefixtures("user")
@pytest.mark.parametrize("release", ALL)
def test_what_each_release_is_given(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, release: str
) -> None:
    """No argument that it does not know, which a double refuses as Python does; the bundle says which it was."""
    record = tmp_path / "record"
    monkeypatch.setenv("RKLLM_DOUBLE_RECORD", str(record))
    (tmp_path / "custom.json").write_text("{}")
    newer = {"max_context": 8192, "load_dtype": "bfloat16", "custom_config": tmp_path / "custom.json"}
    options = {} if release == "1.1.4" else newer
    found = built(model, tmp_path / "out", toolkit=release, **options)
    calls = {method: given for method, given, *_ in map(json.loads, record.read_text().splitlines())}
    custom = {"dtype": "bfloat16", "custom_config": str(tmp_path / "custom.json"), "load_weight": True}
    load = {"model": str(model), "model_lora": None, "device": "cpu", **(custom if options else {})}
    assert calls["load_huggingface"] == load
    assert calls["build"].get("max_context") == (8192 if options else None)
    told = found.manifest["toolkit"]
    assert (told["version"], told.get("max_context")) == (f"{release}+double", 8192 if options else None)
    assert compatibility.release_in(found.manifest) == (f"{release}+double", False)
    card = (found.path / "README.md").read_text()
    assert {"1.1.4": "RKLLM runtime 1.1.x", "1.2.0": "RKLLM runtime 1.2.0 or newer"}.get(release, release) in card


@pytest.mark.usefixtures("user")
def test_the_one_installed_last_is_used_and_others_by_name(model: Path, tmp_path: Path) -> None:
    assert built(model, tmp_path).manifest["toolkit"]["version"] == "1.3.1+double"
    assert Request(toolkit="1.2.0").release.name == "1.2.0"
    assert "--toolkit 1.2.2: installed are 1.1.4+double, 1.2.0+double, 1.2.3+double" in refused(model, toolkit="1.2.2")
    assert "--toolkit is for rkllm-toolkit: give --target rk3588 as well" in _message(Request(toolkit="1.2.0"))


def _message(request: Request) -> str:
    with pytest.raises(UsageError) as caught:
        request.check()
    return str(caught.value)


LACKING: dict[str, tuple[dict[str, Any], str]] = {
    "context": ({"toolkit": "1.1.4", "max_context": 4096}, "--max-context is rkllm-toolkit's from 1.2.0 on, and"),
    "dtype": ({"toolkit": "1.1.4", "load_dtype": "float16"}, "--load-dtype is rkllm-toolkit's from 1.2.0 on"),
    "config": ({"toolkit": "1.1.4", "custom_config": Path("x")}, "--custom-config is rkllm-toolkit's from 1.2.0 on"),
    "odd context": ({"toolkit": "1.2.3", "max_context": 1000}, "--max-context 1000: it is a multiple of 32, 16384"),
    "long context": ({"toolkit": "1.2.3", "max_context": 32768}, "16384 at the most"),
    "no context": ({"toolkit": "1.2.3", "max_context": 0}, "--max-context 0: it is a multiple of 32"),
    "no dtype": ({"toolkit": "1.2.3", "load_dtype": "int8"}, "rkllm-toolkit 1.2.3 has float32, float16, bfloat16"),
    "no config": ({"toolkit": "1.2.3", "custom_config": Path("nowhere")}, "--custom-config nowhere is not a file"),
    "gdq": ({"toolkit": "1.1.4", "algorithm": "gdq"}, "--algorithm gdq is for 4-bit weights"),
    "grq": ({"toolkit": "1.1.4", "algorithm": "grq"}, "has normal and gdq; grq is of 1.2.0 to 1.3.1: install a newer"),
    "grq, likely": ({"toolkit": "1.2.3", "algorithm": "grq"}, "advise grq for 4-bit weights, and normal for an RK3588"),
    "residual": ({"toolkit": "1.2.0", "algorithm": "normal_r8"}, "normal_r8 is of 1.2.1 to 1.3.1"),
    "rank": ({"toolkit": "1.2.3", "algorithm": "normal_r65"}, "gdq and grq and normal_rN, with N up to 64"),
    "none": ({"toolkit": "1.3.1", "algorithm": "best"}, "--algorithm best: rkllm-toolkit 1.3.1 has normal and grq"),
}  # fmt: skip


@pytest.mark.usefixtures("user")
@pytest.mark.parametrize("case", LACKING)
def test_what_a_release_lacks_is_refused(model: Path, case: str) -> None:
    options, told = LACKING[case]
    assert told in refused(model, **options)


@pytest.mark.usefixtures("user")
def test_families_by_release(model: Path, tmp_path: Path) -> None:
    newer = changed(model, tmp_path / "qwen3", architectures=["Qwen3ForCausalLM"], model_type="qwen3")
    told = refused(newer, toolkit="1.2.0")
    assert "rkllm-toolkit takes Qwen3 from 1.2.1 on, and this is 1.2.0" in told and "say which with --toolkit" in told
    assert built(newer, tmp_path / "out", toolkit="1.2.3").manifest["toolkit"]["version"] == "1.2.3+double"


@pytest.mark.usefixtures("user")
def test_what_quantising_lost_is_kept_as_a_lora(model: Path, tmp_path: Path) -> None:
    request = Request(targets=("rk3588",), toolkit="1.2.3", algorithm="normal_r8")
    plan = request.plan(request.open(model), "tiny", tmp_path)
    assert any("without --lora residual the model runs as if by normal" in note for note in plan.notes)
    (folder,) = convert(plan)
    found = bundle.read(folder)
    assert found.loras["residual"].npu == folder / "lora" / "residual.rkllm"
    assert found.manifest["toolkit"]["algorithm"] == "normal_r8"
    assert "LoRA residual (rank 8, scale 1), `--lora residual` selects it" in (folder / "README.md").read_text()
    tiny = models.Tiny(**WIDE)  # type: ignore[arg-type]
    adapter = loras.peft_lora(tmp_path / "adapter", tiny)
    told = refused(model, toolkit="1.2.3", algorithm="normal_r8", loras=(str(adapter),))
    assert "rkllm-toolkit writes one at a time: leave --lora adapter or the algorithm out" in told


def gptq(model: Path, folder: Path, **settings: Any) -> Path:
    """A checkpoint that GPTQ has quantised, as far as headers tell: packed weights, zeros, scales and an order."""
    said = {"quant_method": "gptq", "bits": 8, "group_size": 128, "sym": True, "desc_act": False, **settings}
    found = changed(model, folder, quantization_config=said)
    n, k, packed = 64, 256, 32 // said["bits"]
    tensors = {
        "model.layers.0.self_attn.q_proj.qweight": ("I32", [k // packed, n]),
        "model.layers.0.self_attn.q_proj.qzeros": ("I32", [2, n // packed]),
        "model.layers.0.self_attn.q_proj.scales": ("F16", [2, n]),
        "model.layers.0.self_attn.q_proj.g_idx": ("I32", [k]),
        "model.embed_tokens.weight": ("F16", [384, k]),
    }
    header, at = {}, 0
    for name, (kind, shape) in tensors.items():
        size = (4 if kind == "I32" else 2) * (shape[0] * shape[1] if len(shape) == 2 else shape[0])
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    (found / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + bytes(at))
    return found


@pytest.mark.usefixtures("user")
@pytest.mark.parametrize("bits", [4, 8])
def test_gptq_is_taken_as_it_is(model: Path, tmp_path: Path, bits: int) -> None:
    found = built(gptq(model, tmp_path / "m", bits=bits), tmp_path / "out", toolkit="1.2.0", dtypes=("w8a8_g128",))
    assert (found.dtype, found.manifest["model"]["parameters"]) == ("w8a8_g128", 64 * 256 + 384 * 256)


GPTQ: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "old toolkit": ({}, {"toolkit": "1.1.4"}, "(gptq), which rkllm-toolkit takes from 1.2.0 on, and this is 1.1.4"),
    "dtype": ({}, {"dtypes": ("w8a8",)}, "--dtype w8a8: .* has weights in groups of 128: give --dtype w8a8_g128"),
    "order": ({"desc_act": True}, {}, "its inputs are not in their order (desc_act): convert the original instead"),
    "zeros": ({"sym": False}, {}, "it is not symmetric"),
    "group": ({"group_size": 32}, {}, "its groups are of 32, where 128, 256, 512 are taken"),
    "bits": ({"bits": 2}, {}, "it has 2 bits, where 4 or 8 are taken"),
    "another way": ({"quant_method": "awq"}, {}, "the model is quantised already (awq): convert the original instead"),
    "for the twin": ({}, {"targets": ("sim",), "toolkit": None}, "(gptq): convert the original instead"),
}  # fmt: skip


@pytest.mark.usefixtures("user")
@pytest.mark.parametrize("case", GPTQ)
def test_gptq_that_cannot_be_taken(model: Path, tmp_path: Path, case: str) -> None:
    settings, options, told = GPTQ[case]
    request = Request(**{"targets": ("rk3588",), "toolkit": "1.2.3", "dtypes": ("w8a8_g128",), **options})
    with pytest.raises(Exception) as caught:
        request.plan(request.open(gptq(model, tmp_path / "m", **settings)), "tiny", tmp_path)
    for part in told.split(".* "):
        assert part in str(caught.value)


def test_the_table_of_releases() -> None:
    """Wheels by Python, as Rockchip's commits have them; a content has one place."""
    ids = [blob for wheels in releases.WHEELS.values() for blob in wheels.values()]
    assert len(ids) == len(set(ids)) == 37 and all(len(blob) == 40 for blob in ids)
    assert releases.of("1.1.0").pythons == ("3.8",) and releases.of("1.1.4").pythons == ("3.8", "3.10")
    assert releases.of("1.2.3").pythons == ("3.9", "3.10", "3.11", "3.12")
    assert releases.of("1.3.1").pythons == ("3.10", "3.11", "3.12") and releases.of("1.3.1+mine").known
    assert not releases.of("2.0.0").known and releases.of("2.0.0").takes_max_context
    assert releases.of("1.2.0").algorithms == ("normal", "gdq", "grq")
    assert releases.MD5 == {"696070d1ec134ff68fd5b03b873cd678": "3.8", "e8e37c6bf0af799f9a0187c9864b2450": "3.10"}


def test_a_wheels_id_is_that_of_git(tmp_path: Path) -> None:
    of_git = {b"": "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391", b"hi\n": "45b983be36b73c0788dc9cbcb76cbb80fc7bb057"}
    for content, git in of_git.items():
        (tmp_path / "file").write_bytes(content)
        assert installs._digests(tmp_path / "file")[1] == git


@pytest.mark.parametrize(
    ("version", "told"),
    [
        ("1.3.1", "may be Rockchip's, who have published no hash of 1.3.1: check where it came from, then give"),
        ("1.2.3", "is no wheel that this version knows: check"),
        ("0.9.0", "is no wheel that this version knows, which are of 1.1.0, 1.1.1, "),
    ],
)
def test_wheels_that_are_not_known(tmp_path: Path, version: str, told: str) -> None:
    wheel = toolkit_double.build_wheel(tmp_path, "cp310-cp310-linux_x86_64", version)
    with pytest.raises(ToolkitError) as caught:
        installs.choose(wheel, None, allow_unknown=False)
    assert told in str(caught.value)


def test_what_is_only_called_as_a_wheel(tmp_path: Path) -> None:
    wheel = tmp_path / "rkllm_toolkit-1.1.1-cp310-cp310-linux_x86_64.whl"
    for content in (b"", b"hello\n", b"PK\3\4 and then it broke off"):
        wheel.write_bytes(content)
        with pytest.raises(ToolkitError, match=rf"\({len(content)} bytes\) is called as a wheel and is none"):
            installs.choose(wheel, None, allow_unknown=True)


def test_side_by_side_status_and_removal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    for release in ("1.1.4+double", "1.2.3+double"):
        found = toolkit_double.put(tmp_path, release)
    status = found.rkconvert("toolkit", "status")
    assert status.stdout.startswith("rkllm-toolkit 1.2.3+double, in use\n")
    assert "rkllm-toolkit 1.1.4+double (--toolkit 1.1.4+double)\n" in status.stdout
    with pytest.raises(UsageError, match="--toolkit 9: installed are"):
        installs.remove("9")
    assert installs.remove("1.2.3")
    assert [toolkit.version for toolkit in installs.all_installed()] == ["1.1.4+double"]
    assert sorted(path.name for path in installs.home().iterdir()) == ["python-1.1.4+double", "toolkit.json"]
    assert installs.remove() and not installs.home().exists() and not installs.remove("1.1.4")


def test_a_record_of_before_there_were_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    toolkit_double.put(tmp_path, "1.1.1+double")
    record = installs.home() / "toolkit.json"
    record.write_text(json.dumps(json.loads(record.read_text())["toolkits"][0]))
    found = installs.installed()
    assert found is not None and found.version == "1.1.1+double"
    for broken in ("[]", "{}", '{"toolkits": 1}', "x"):
        record.write_text(broken)
        with pytest.raises(ToolkitError, match="install the toolkit again"):
            installs.installed()
