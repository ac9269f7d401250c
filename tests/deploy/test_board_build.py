"""``--target rk3588``: what rkllm-toolkit is given, what becomes of its exports, and what a bundle says of it."""

from __future__ import annotations

import hashlib
import json
import signal
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rk3588 import bundle, hostlib, quant
from rk3588.errors import BundleError, ToolkitError
from rkconvert.artifact import hybrid
from rkconvert.build import convert
from rkconvert.sources.opening import open_source
from tests import loras, models, toolkit_double
from tests.convert.test_toolkit import waited
from tests.plans import make_plan
from tests.toolkit_double import Installed

SIM = "model.sim.gguf"

WIDE = {"hidden": 256, "intermediate": 512, "heads": 4, "kv_heads": 2, "head_dim": 64}
TINY = models.Tiny(hidden=256, intermediate=512, heads=4, kv_heads=2, head_dim=64)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.tiny_llama(tmp_path_factory.mktemp("source") / "tiny", **WIDE)  # type: ignore[arg-type]


def exported(path: Path) -> dict[str, Any]:
    """What the double was given, out of its export."""
    banner, _, facts = path.read_text().partition("\n")
    assert banner.encode().startswith(toolkit_double.BANNER)
    loaded: dict[str, Any] = json.loads(facts)
    return loaded


def recorded(path: Path, method: str) -> list[dict[str, Any]]:
    return [given for name, given, _, _ in map(json.loads, path.read_text().splitlines()) if name == method]


def test_both_targets_in_one_bundle(toolkit: Installed, model: Path, tmp_path: Path) -> None:
    """Every argument arrives, none is left to a default; the bundle says what was done, and nothing is left over."""
    (tmp_path / "extra.npy").write_bytes(b"x")
    (tmp_path / "data.jsonl").write_text('{"prompt": "Hi?", "answer": "Hello."}\n')
    record = tmp_path / "record"
    arguments = ["--target=sim", "--target=rk3588", "--dtype=w8a8_g128", "--hybrid-rate=0.5", "--optimization-level=0"]
    arguments += ["--npu-cores=2", f"--extra-qparams={tmp_path / 'extra.npy'}", f"--dataset={tmp_path / 'data.jsonl'}"]
    arguments += ["--algorithm=normal", "--device=cpu", "--force"]
    done = toolkit.rkconvert(model, "-o", tmp_path / "out", *arguments, RKLLM_DOUBLE_RECORD=str(record))
    folder = tmp_path / "out" / "tiny-rk3588-w8a8_g128-opt0-hybrid0.5"
    assert (done.returncode, done.stdout) == (0, f"{folder}\n"), done.stderr
    assert [p.name for p in (tmp_path / "out").iterdir()] == [folder.name]

    (load,), (build,) = recorded(record, "load_huggingface"), recorded(record, "build")
    assert load == {"model": str(model), "model_lora": None, "device": "cpu"}
    assert Path(build.pop("dataset")).name == "dataset.json"
    assert build == {
        "do_quantization": True, "optimization_level": 0, "quantized_dtype": "w8a8_g128",
        "quantized_algorithm": "normal", "target_platform": "rk3588", "num_npu_core": 2,
        "extra_qparams": str(tmp_path / "extra.npy"), "hybrid_rate": 0.5,
    }  # fmt: skip

    found = bundle.read(folder)
    bundle.verify(found)
    assert found.manifest["artifacts"] == {"sim": SIM, "rk3588": "model.rkllm"}
    told = found.manifest["toolkit"]
    rendered = [{"input": "<|im_start|>user\nHi?<|im_end|>\n<|im_start|>assistant\n", "target": "Hello."}]
    digest = hashlib.sha256((json.dumps(rendered, indent=1) + "\n").encode()).hexdigest()
    assert told["dataset"] == {"name": "data.jsonl", "samples": 1, "sha256": digest}
    assert exported(folder / "model.rkllm")["dataset"] == digest
    assert (told["optimization_level"], told["npu_cores"], told["known"]) == (0, 2, False)
    assert told["version"] == "1.1.1+double"
    assert told["extra_qparams"] == {"name": "extra.npy", "sha256": hashlib.sha256(b"x").hexdigest()}
    assert not {str(tmp_path), str(model.parent)} & set((folder / "rkbundle.json").read_text().split('"'))

    text = "Hello <|im_end|> world 123"
    alone = hostlib.SimModel(folder / "tokenizer.gguf", vocab_only=True)
    with alone, hostlib.SimModel(found.path / SIM) as whole:
        assert alone.tokenise(text) == whole.tokenise(text)


def test_what_the_double_writes_is_no_model_for_a_board(toolkit: Installed, model: Path, tmp_path: Path) -> None:
    done = toolkit.rkconvert(model, "-o", tmp_path, "--target", "rk3588")
    folder = Path(done.stdout.strip())
    assert not (folder / SIM).exists()
    with pytest.raises(BundleError, match=r"model\.rkllm is no \.rkllm but a test's stand-in for one"):
        _ = bundle.read(folder).npu_model
    card = (folder / "README.md").read_text()
    assert "which is none of Rockchip's known wheels" in card
    program = "from rk3588.cli import main; main()"
    command = [sys.executable, "-c", program, "run", str(folder), "hello"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert run.returncode == 1 and "is no .rkllm but a test's stand-in" in run.stderr


@pytest.mark.parametrize(
    ("start", "what"), [(b"GGUF\3\0\0\0", "a GGUF file"), (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS")]
)
def test_other_files_under_the_name_of_a_rkllm(tmp_path: Path, start: bytes, what: str) -> None:
    (tmp_path / "model.rkllm").write_bytes(start)
    manifest = {"artifacts": {"rk3588": "model.rkllm"}}
    with pytest.raises(BundleError, match=what):
        _ = bundle.Bundle(tmp_path, manifest).npu_model


def test_models_that_only_the_toolkit_takes(toolkit: Installed, model: Path, tmp_path: Path) -> None:
    """Another architecture, with a tokenizer of its own kind, is the toolkit's business."""
    other = tmp_path / "minicpm3"
    other.mkdir()
    for file in model.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    settings = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(
        json.dumps({**settings, "architectures": ["MiniCPM3ForCausalLM"], "model_type": "minicpm3"})
    )
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["pre_tokenizer"] = {"type": "Whitespace"}
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    done = toolkit.rkconvert(other, "-o", tmp_path / "out", "--target", "rk3588")
    assert done.returncode == 0, done.stderr
    assert "no tokenizer.gguf is written, so prompts are sent as text" in done.stderr
    found = bundle.read(Path(done.stdout.strip()))
    assert found.manifest["model"]["architecture"] == "MiniCPM3ForCausalLM" and found.manifest["tokenizer"] == {}
    refused = toolkit.rkconvert(other, "-o", tmp_path / "sim")
    assert refused.returncode == 1
    assert "MiniCPM3 is not converted for the simulated runtime: its latent attention" in refused.stderr
    assert "--target rk3588 alone, without --lora, converts it for a board" in refused.stderr


def test_gguf_goes_in_as_the_file_it_is(toolkit: Installed, tmp_path: Path) -> None:
    file = models.tiny_gguf(tmp_path / "m.gguf", dtype="F16", **WIDE)  # type: ignore[arg-type]
    record = tmp_path / "record"
    done = toolkit.rkconvert(
        file, "-o", tmp_path / "out", "--target", "rk3588", "--community-names", RKLLM_DOUBLE_RECORD=str(record)
    )
    assert done.returncode == 0, done.stderr
    assert recorded(record, "load_gguf") == [{"model": str(file)}]
    folder = Path(done.stdout.strip())
    assert folder.name == "m-rk3588-w8a8-opt-1-hybrid-ratio-0.0"
    assert (folder / "m-rk3588-w8a8-opt-1-hybrid-ratio-0.0.rkllm").is_file()


def test_a_failed_build_ends_it_and_leaves_what_was_done(toolkit: Installed, model: Path, tmp_path: Path) -> None:
    wide = ["--target", "rk3588", "--dtype", "w8a8", "--dtype", "w8a8_g256"]
    first = toolkit.rkconvert(model, "-o", tmp_path / "out", *wide[:4])
    assert first.returncode == 0, first.stderr
    done = toolkit.rkconvert(
        model, "-o", tmp_path / "out", *wide[:2], "--dtype", "w8a8_g256", RKLLM_DOUBLE="export_rkllm:fail"
    )
    assert done.returncode == 1 and done.stdout == ""
    assert "rkllm-toolkit failed in export_rkllm: it returned -1" in done.stderr
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["tiny-rk3588-w8a8"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupt_in_the_middle_of_a_build(toolkit: Installed, model: Path, tmp_path: Path, number: int) -> None:
    """Ctrl-C leaves nothing; what a SIGKILL leaves goes with the next attempt."""
    record = tmp_path / "record"
    command = [sys.executable, "-c", toolkit_double.PROGRAM, str(model), "-o", str(tmp_path / "out")]
    command += ["--target", "rk3588", "--target", "sim"]
    env = {**toolkit.env, "RKLLM_DOUBLE": "build:hang", "RKLLM_DOUBLE_RECORD": str(record)}
    with subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True) as process:
        waited(lambda: record.exists() and '"build"' in record.read_text())
        process.send_signal(number)
        _, stderr = process.communicate(timeout=60)
    if number == signal.SIGINT:
        assert (process.returncode, stderr.splitlines()[-1]) == (130, "Interrupted")
        assert not (tmp_path / "out").exists()
        return
    assert [p.suffix for p in (tmp_path / "out").iterdir()] == [".part"]
    assert toolkit.rkconvert(*command[3:]).returncode == 0
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["tiny-rk3588-w8a8"]


def test_a_lora_is_the_toolkits_too(toolkit: Installed, model: Path, tmp_path: Path) -> None:
    """Kept: one build for each, given as ``model_lora``, its export beside ours. Merged: the folder that it gets."""
    adapters = [loras.peft_lora(tmp_path / name, TINY, seed=seed) for seed, name in enumerate(("one", "two"))]
    chosen = [f"--lora={adapter}" for adapter in adapters]
    record = tmp_path / "record"
    both = ["--target", "rk3588", "--target", "sim"]
    done = toolkit.rkconvert(model, "-o", tmp_path / "kept", *both, *chosen, RKLLM_DOUBLE_RECORD=str(record))
    assert done.returncode == 0, done.stderr
    assert [given["model_lora"] for given in recorded(record, "load_huggingface")] == [str(a) for a in adapters]
    found = bundle.read(Path(done.stdout.strip()))
    bundle.verify(found)
    kept = [found.path / f"lora/{name}.{kind}" for name in ("one", "two") for kind in ("gguf", "rkllm")]
    assert [(lora.sim, lora.npu) for lora in found.loras.values()] == [tuple(kept[:2]), tuple(kept[2:])]
    weights = (adapters[1] / "adapter_model.safetensors").read_bytes()
    assert exported(kept[3])["lora"] == hashlib.sha256(weights).hexdigest()
    assert (found.path / "README.md").read_text().count("- w8a8: LoRA") == 2

    record.unlink()
    done = toolkit.rkconvert(
        model, "-o", tmp_path / "merged", *both, *chosen, "--lora-mode=merge", RKLLM_DOUBLE_RECORD=str(record)
    )
    assert done.returncode == 0, done.stderr
    (load,) = recorded(record, "load_huggingface")
    assert load["model_lora"] is None and load["model"] != str(model)
    merged = bundle.read(Path(done.stdout.strip()))
    given = exported(merged.path / "model.rkllm")["model"]["model.safetensors"]
    assert given != hashlib.sha256((model / "model.safetensors").read_bytes()).hexdigest()
    assert merged.loras == {}


def test_a_lora_that_the_toolkit_did_not_export_ends_it(model: Path, tmp_path: Path) -> None:
    """It may say that all went well: what counts is the file."""
    from rkconvert.adapters import lora
    from rkconvert.toolkit import build

    adapter = lora.read(lora.parse(str(loras.peft_lora(tmp_path / "tuned", TINY))), open_source(model))
    (tmp_path / "0.rkllm").write_bytes(b"model")
    (tmp_path / "0_lora.rkllm").touch()
    with pytest.raises(ToolkitError, match=r"said that it exported the LoRA, and wrote no tuned\.rkllm"):
        build._adopt({tmp_path / "0.rkllm": adapter}, tmp_path / "model.rkllm", tmp_path)


def test_a_merged_folder_is_what_adding_gives(model: Path, tmp_path: Path) -> None:
    from rkconvert.adapters import lora, merge

    source = open_source(model)
    adapter = lora.read(lora.parse(f"{loras.peft_lora(tmp_path / 'a', TINY, seed=3)}:a:0.5"), source)
    folder = merge.write_checkpoint(source, [adapter], tmp_path / "merged", lambda: None)
    after = open_source(folder)
    changed = set()
    for name, tensor in source.tensors.items():
        before, now = (_values(s.tensors[name]) for s in (source, after))
        pair = adapter.pairs.get(name)
        wanted = before + 0.5 * pair.factor * (pair.b @ pair.a) if pair else before
        np.testing.assert_allclose(now, wanted, rtol=2**-8, atol=1e-6)  # bf16 keeps 8 bits
        if not np.array_equal(before, now):
            changed.add(name)
        assert tensor.kind == after.tensors[name].kind
    assert changed == set(adapter.pairs)


def _values(tensor: Any) -> Any:
    with tensor.file.open("rb") as file:
        file.seek(tensor.offset)
        bits, kind = tensor.decode(file.read(tensor.nbytes))
    assert kind == "BF16"
    return (bits.astype(np.uint32) << 16).view(np.float32)


@pytest.mark.parametrize(("dtype", "rate"), [("w8a8", 0.25), ("w8a8_g256", 0.5)])
def test_a_hybrid_groups_the_layers_that_gain_most(model: Path, tmp_path: Path, dtype: str, rate: float) -> None:
    source = open_source(model)
    (folder,) = convert(make_plan(source, "tiny", tmp_path, [quant.scheme(dtype)], hybrid_rate=rate))
    facts = bundle.read(folder).manifest["hybrid"]
    plain, grouped = quant.mixed(quant.scheme(dtype))
    assert facts["rate"] == rate and facts["sim"]["group_size"] == grouped.group_size

    gains = {}
    linear = [n for n, s in source.config.tensors().items() if len(s) == 2 and n != "token_embd.weight"]
    units = hybrid._layers_of_one_input(linear)
    for unit in units:
        errors = np.zeros(3)
        for name in unit:
            weight = _values(source.tensors[name]).astype(np.float64)
            for i, scheme in enumerate((plain, grouped)):
                back = quant.dequantise(*quant.quantise(weight.astype(np.float32), scheme), scheme)
                errors[i] += ((weight - back) ** 2).sum()
            errors[2] += (weight**2).sum()
        gains[unit] = (errors[0] - errors[1]) / errors[2]
    best = sorted(gains, key=lambda unit: -gains[unit])[: round(rate * len(units))]
    assert set(facts["sim"]["grouped"]) == {name for unit in best for name in unit}

    ids = list(range(10, 60))
    with hostlib.SimModel(folder / SIM) as mixed:
        logits = mixed.logits(ids)
        for unit in units:  # the runtime computes each layer with the scales that the file has
            scheme = grouped if unit in best else plain
            weight = _values(source.tensors[unit[0]])
            back = quant.dequantise(*quant.quantise(weight, scheme), scheme)
            x = np.eye(weight.shape[1], dtype=np.float32)  # int8 holds it exactly: a column of the weights for each
            np.testing.assert_allclose(mixed.linear(unit[0], x, len(weight)), back.T, rtol=1e-5)
    assert np.isfinite(logits).all()


def test_a_hybrid_file_that_mixes_within_one_input_is_refused(model: Path, tmp_path: Path) -> None:
    """Q, K and V share what their input was quantised to: the runtime believes no file that says otherwise."""
    from dataclasses import replace

    from rkconvert.artifact.layout import make_artifact

    source = open_source(model)
    plan = make_plan(source, "tiny", tmp_path, [quant.scheme("w8a8")], hybrid_rate=0.5)
    wrong = make_artifact(source.config, quant.scheme("w8a8"), frozenset({"blk.0.attn_q.weight"}))
    (folder,) = _convert_as_planned(replace(plan, artifacts=(wrong,)))
    with pytest.raises(Exception, match=r"blk\.0\.attn mixes groups between layers of one input"):
        hostlib.SimModel(folder / SIM)


def _convert_as_planned(plan: Any) -> list[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hybrid, "choose_grouped_layers", lambda plan, _: plan)
        return convert(plan)


def test_the_twins_file_names_its_hybrid(model: Path, tmp_path: Path) -> None:
    (folder,) = convert(make_plan(open_source(model), "tiny", tmp_path, [quant.scheme("w8a8")], hybrid_rate=0.25))
    data = (folder / SIM).read_bytes()
    key = b"rksim.hybrid_rate"
    at = data.index(key) + len(key)
    assert struct.unpack("<If", data[at : at + 8]) == (6, 0.25)
