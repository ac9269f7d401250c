"""Model folders and adapters from elsewhere, through `rkconvert` as a user calls it: a sentence, or a whole bundle."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from rk3588 import bundle
from rk3588.errors import CheckpointError, RkError, UsageError
from rkconvert import calibration
from rkconvert.adapters import lora
from rkconvert.cli import cli
from tests import loras, models

TINY = models.Tiny()


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.tiny_llama(tmp_path_factory.mktemp("original") / "tiny")


@pytest.fixture
def model(original: Path, tmp_path: Path) -> Path:
    (tmp_path / "secret").write_text("PRIVATE KEY")
    return Path(shutil.copytree(original, tmp_path / "tiny"))


def rkconvert(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(a) for a in arguments])


def refused(model: Path, *options: object, kind: type[RkError] = CheckpointError) -> str:
    """The sentence of a conversion that fails, and leaves nothing."""
    out = model.parent / "out"
    done = rkconvert(model, "-o", out, *options)
    assert isinstance(done.exception, kind), (done.output, done.exception)
    assert done.stdout == "" and (not out.exists() or list(out.iterdir()) == [])
    message = str(done.exception)
    assert "\n" not in message and len(message) < 1000
    return message


def made(model: Path, *options: object) -> tuple[Path, str]:
    """The bundle and what was said on stderr."""
    done = rkconvert(model, "-o", model.parent / "out", "--overwrite", *options)
    assert done.exception is None, (done.output, done.exception)
    bundle.verify(bundle.read(done.stdout.strip()))
    return Path(done.stdout.strip()), done.stderr


# Links, FIFOs and sizes ------------------------------------------------------------------------------------------

EVERY = [
    "config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "special_tokens_map.json",
    "chat_template.jinja", "tokenizer.model", "model.safetensors", "LICENSE", "README.md", "NOTICE.txt",
]  # fmt: skip


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("what", ["link", "device", "fifo"])
def test_what_is_no_file_of_the_folder_is_refused_by_its_name(model: Path, name: str, what: str) -> None:
    (model / name).unlink(missing_ok=True)
    if what == "fifo":
        os.mkfifo(model / name)
    else:
        (model / name).symlink_to("/dev/zero" if what == "device" else model.parent / "secret")
    sentence = "is a FIFO, where a file is expected" if what == "fifo" else "is a link that leaves its folder"
    assert f"{model / name} {sentence}" in refused(model)


@pytest.mark.parametrize("name", [name for name in EVERY if name != "model.safetensors"])
def test_every_file_is_bounded(model: Path, name: str) -> None:
    with (model / name).open("wb") as file:
        file.truncate(1 << 40)
    assert f"{model / name} has 1099511.6 MB, where " in refused(model)


def test_a_link_to_weights_of_ones_own(model: Path, tmp_path: Path) -> None:
    (model / "model.safetensors").rename(tmp_path / "weights")
    (model / "model.safetensors").symlink_to(tmp_path / "weights")
    assert "put the file itself there, or give --follow-links where the link is your own" in refused(model)
    folder, said = made(model, "--follow-links")
    assert said == "" and (folder / "model.sim.gguf").is_file()


def test_links_that_stay_in_the_folder(model: Path) -> None:
    (model / "kept").mkdir()
    for file in [file for file in model.iterdir() if file.is_file()]:
        file.rename(model / "kept" / file.name)
        file.symlink_to(f"kept/{file.name}")
    folder, _ = made(model)
    assert not any(file.is_symlink() for file in folder.rglob("*"))


def test_a_snapshot_of_the_hubs_cache(model: Path, tmp_path: Path) -> None:
    snapshot, blobs = (tmp_path / "models--u--tiny" / name for name in ("snapshots/0123", "blobs"))
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(model.iterdir()):
        file.rename(blobs / str(number))
        (snapshot / file.name).symlink_to(f"../../blobs/{number}")
    done = rkconvert(snapshot, "-o", tmp_path / "out", "--name", "tiny")
    assert done.exception is None, done.exception


def test_a_link_that_leads_nowhere(model: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / "model.safetensors").symlink_to("gone")
    assert "model.safetensors is a link that leads nowhere: download the model again" in refused(model)


def test_an_adapter_from_elsewhere(model: Path, tmp_path: Path) -> None:
    adapter = loras.peft_lora(tmp_path / "a", TINY)
    for name in (lora.CONFIG, lora.WEIGHTS):
        (adapter / name).rename(tmp_path / name)
        (adapter / name).symlink_to(tmp_path / name)
        assert f"{adapter / name} is a link that leaves its folder" in refused(model, "--lora", adapter)
        (adapter / name).unlink()
        os.mkfifo(adapter / name)
        assert f"{adapter / name} is a FIFO" in refused(model, "--lora", adapter)
        (adapter / name).unlink()
        shutil.copy(tmp_path / name, adapter / name)
    (adapter / lora.WEIGHTS).unlink()
    (adapter / lora.WEIGHTS).symlink_to(tmp_path / lora.WEIGHTS)
    made(model, "--lora", adapter, "--follow-links")


def test_what_else_is_given_for_a_model(model: Path, tmp_path: Path) -> None:
    adapter = loras.peft_lora(tmp_path / "a", TINY)
    assert f"is an adapter and not a model: give the model that it was trained on, and --lora {adapter}" in refused(
        adapter
    )
    os.mkfifo(tmp_path / "m.gguf")
    assert "m.gguf is a FIFO" in refused(tmp_path / "m.gguf")
    folder, _ = made(model)
    done = rkconvert(folder, "-o", tmp_path / "again")
    assert "is a bundle, which is converted already" in str(done.exception)


@pytest.mark.parametrize("what", ["/dev/zero", "fifo", "large"])
def test_texts_that_the_user_names_are_files_of_some_size(model: Path, tmp_path: Path, what: str) -> None:
    path = tmp_path / what.strip("/")
    if what == "fifo":
        os.mkfifo(path)
    elif what == "large":
        with path.open("wb") as file:
            file.truncate(1 << 40)
    else:
        path = Path(what)
    sentence = {"fifo": "is a FIFO", "large": "are the most"}.get(what, "is a device")
    with pytest.raises(UsageError, match=f"{path} .*{sentence}"):
        calibration.load(path, None)
    done = rkconvert("accuracy", made(model)[0], "--text", path)
    assert isinstance(done.exception, UsageError) and sentence in str(done.exception)
    done = rkconvert("sweep", path)
    assert isinstance(done.exception, UsageError) and sentence in str(done.exception)


# Which files have the weights ------------------------------------------------------------------------------------


def index(folder: Path, shards: int) -> None:
    names = list(TINY.shapes())
    parts = {name: i * shards // len(names) + 1 for i, name in enumerate(names)}
    places = {name: f"model-{part:05}-of-{shards:05}.safetensors" for name, part in parts.items()}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


def shards(folder: Path, count: int, seed: int = 0) -> None:
    index(folder, count)
    weights = models.Tiny(seed=seed).weights()
    places = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    for place in set(places.values()):
        models.write_safetensors(folder / place, {n: w for n, w in weights.items() if places[n] == place}, "bf16")


@pytest.mark.parametrize("with_shards", [False, True])
def test_the_whole_file_is_taken_where_an_old_index_lies_beside_it(model: Path, with_shards: bool) -> None:
    before = (made(model)[0] / "model.sim.gguf").read_bytes()
    if with_shards:
        shards(model, 2, seed=9)
    else:
        index(model, 2)
    folder, said = made(model)
    assert (folder / "model.sim.gguf").read_bytes() == before
    assert "Note: model.safetensors is converted, as transformers would load it; not used beside it: model.safe" in said
    read = {file["path"] for file in bundle.read(folder).manifest["source"]["files"]}
    assert "model.safetensors" in read and "model.safetensors.index.json" not in read


def rename(new: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "model.safetensors").rename(folder / new)


def other_index(folder: Path) -> None:
    shards(folder, 1)
    index(folder, 3)


def without_index(folder: Path) -> None:
    shards(folder, 2)
    (folder / "model.safetensors.index.json").unlink()


WEIGHTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "an index of other shards": (other_index, "the index is not of the files that are there (model-00001-of-00001.sa"),
    "no index": (without_index, "has shards (model-00001-of-00002.safetensors, model-00002-of-00002.safetensors) and"),
    "a variant": (rename("model.fp16.safetensors"), "has its weights as a variant only (model.fp16.safetensors): load"),
    "Meta's own": (rename("consolidated.safetensors"), "has its weights in consolidated.safetensors, under other"),
    "another name": (rename("weights.safetensors"), "no index of shards, only weights.safetensors: download the model"),
    "a pickle": (rename("pytorch_model.bin"), "has its weights in pytorch_model.bin, which can run code"),
    "nothing": (lambda f: (f / "model.safetensors").unlink(), "has no model.safetensors and no index of shards: down"),
}  # fmt: skip


@pytest.mark.parametrize("case", WEIGHTS)
def test_other_forms_of_weights(model: Path, case: str) -> None:
    change, sentence = WEIGHTS[case]
    change(model)
    if (model / "model-00001-of-00001.safetensors").exists() or (model / "model-00001-of-00002.safetensors").exists():
        (model / "model.safetensors").unlink()
    assert sentence in refused(model)


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b", "\ud800", "../m.safetensors", "", 3, None, ["x"]])
def test_a_shards_name_that_is_none(model: Path, name: Any) -> None:
    (model / "model.safetensors").unlink()
    (model / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"lm_head.weight": name}}))
    assert "is not the name of a file beside it" in refused(model)


def test_an_adapter_beside_the_weights_is_not_applied(model: Path) -> None:
    loras.peft_lora(model, TINY)
    assert "holds an adapter as well (adapter_config.json), which is not applied: give it with --lora" in made(model)[1]


def test_weights_saved_under_zero_3(model: Path) -> None:
    weights = {n: np.zeros((0,), np.float32) if "q_proj" in n else w for n, w in TINY.weights().items()}
    models.write_safetensors(model / "model.safetensors", weights, "bf16")
    message = refused(model)
    assert "q_proj.weight is empty (shape [0]), as when it is saved under DeepSpeed ZeRO-3" in message
    assert "zero_to_fp32.py" in message


WHOLE = ["lm_head.weight", "model.embed_tokens.weight", "lm_head.modules_to_save.weight"]


@pytest.mark.parametrize("name", WHOLE)
def test_an_adapter_with_a_whole_head_or_embedding(model: Path, tmp_path: Path, name: str) -> None:
    adapter = loras.peft_lora(tmp_path / "a", TINY)
    weights = {**loras.weights(TINY, 4, loras.LINEAR), f"base_model.model.{name}": np.ones((384, 64), np.float32)}
    models.write_safetensors(adapter / lora.WEIGHTS, weights, "fp32")
    message = refused(model, "--lora", adapter)
    part = "embed_tokens" if "embed" in name else "lm_head"
    assert f"has the whole {part} of its model, which peft saves where tokens were added or it was trained" in message
    assert "merge it into its base with peft (merge_and_unload, then save_pretrained)" in message


def test_an_adapter_saved_under_zero_3(model: Path, tmp_path: Path) -> None:
    adapter = loras.peft_lora(tmp_path / "a", TINY)
    weights = {name: np.zeros((0,), np.float32) for name in loras.weights(TINY, 4, loras.LINEAR)}
    models.write_safetensors(adapter / lora.WEIGHTS, weights, "fp32")
    assert "is empty (shape [0]), as when it is saved under DeepSpeed ZeRO-3" in refused(model, "--lora", adapter)


# Templates, cards and licences -----------------------------------------------------------------------------------

TEMPLATES = ["{% for %}", "{{ " + "(" * 50_000, "{% generation %}", "{{ 'a", "{% if x %}" * 20_000]


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda t: t[:12])
def test_a_template_that_is_none_is_left_out_and_told(model: Path, template: str) -> None:
    (model / "chat_template.jinja").write_text(template)
    folder, said = made(model)
    assert bundle.read(folder).chat_template is None
    assert "Note: the chat template is not a Jinja template that can be used: " in said
    assert "the bundle has none, so rk3588 run needs --raw; mend the template and convert again" in said
    assert said.count("\n") == 1


def test_a_template_is_not_computed_when_it_is_read(model: Path) -> None:
    (model / "chat_template.jinja").write_text("{{ 9 ** 9 ** 9 }}{{ 'a' * 10 ** 12 }}")
    assert bundle.read(made(model)[0]).chat_template == "{{ 9 ** 9 ** 9 }}{{ 'a' * 10 ** 12 }}"


@pytest.mark.parametrize(
    ("architecture", "model_type", "way"),
    [
        (
            "ChatGLMModel",
            "chatglm",
            "; --target rk3588 alone, without --lora, converts it for a board (rkllm-toolkit "
            "1.1.1), and rk3588 predict says how fast it would be there",
        ),
        ("MiniCPM3ForCausalLM", "minicpm3", "; --target rk3588 alone, without --lora, converts it for a board"),
        ("TeleChat2ForCausalLM", "telechat", "its fused layers and its tokenizer are known to its own code only"),
        ("MambaForCausalLM", "mamba", "; nor is it known that rkllm-toolkit takes it"),
    ],
)
def test_a_family_that_the_simulated_runtime_lacks(model: Path, architecture: str, model_type: str, way: str) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(
        json.dumps({**config, "architectures": [architecture], "model_type": model_type})
    )
    assert way in refused(model)
