"""rkllm_load_lora and lora_params from a C program: which run uses which adapter, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from rk3588.hostlib import SimModel
from rkconvert.adapters import in_bundle, lora
from rkconvert.sources.opening import open_source
from tests import loras, models
from tests.rkllm_driver import FINISH, Driver
from tests.sim.test_rkllm_refusals import errors
from tests.twins import Twin

GREEDY = ("set:top_k=1", "set:repeat_penalty=1", "set:max_new_tokens=8")
IDS = [5, 9, 71, 30]
TOKENS = "tokens:" + ",".join(map(str, IDS))


@pytest.fixture(scope="module")
def model(tiny_bundles: Mapping[str, Path]) -> Path:
    return tiny_bundles["w8a8"] / "model.sim.gguf"


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Two adapters for the tiny model, whose base is tests.models.Tiny()."""
    folder = tmp_path_factory.mktemp("loras")
    source = open_source(models.tiny_llama(folder / "base"))
    found = {}
    for seed, name in enumerate(("one", "two")):
        option = lora.LoraOption(loras.peft_lora(folder / name, models.Tiny(), seed=seed), name, 1.0)
        found[name] = folder / f"{name}.gguf"
        in_bundle.write_gguf(lora.read(option, source), source.config, found[name])
    return found


@pytest.fixture(scope="module")
def greedy(model: Path, adapters: Mapping[str, Path]) -> Callable[..., list[int]]:
    """The eight tokens after IDS by argmax, through librksim."""

    def answer(name: str | None = None, scale: float = 1.0) -> list[int]:
        ids = list(IDS)
        with SimModel(model, threads=2) as opened:
            opened.use_lora(adapters[name] if name else None, scale)
            for _ in range(8):
                ids.append(int(np.argmax(opened.logits(ids)[-1])))
        return ids[-8:]

    return answer


def load(path: Path, name: str, scale: float = 1.0) -> list[str]:
    return [f"adapter:{path},{name},{scale}", "load_lora"]


def test_each_run_uses_the_adapter_it_names_and_no_other(
    driver: Driver, model: Path, adapters: Mapping[str, Path], greedy: Callable[..., list[int]]
) -> None:
    wanted = {"": greedy(), "a": greedy("one"), "b": greedy("two"), "half": greedy("one", 0.5)}
    assert len({tuple(tokens) for tokens in wanted.values()}) == 4  # or the test could not tell them apart
    loaded = [*load(adapters["one"], "a"), *load(adapters["two"], "b"), *load(adapters["one"], "half", 0.5)]
    order = ["", "a", "", "b", "half", "a", "b", ""]
    runs = [word for name in order for word in ([f"lora:{name}"] if name else ["no_lora"]) + ["run"]]
    done = driver(*GREEDY, f"init:{model}", TOKENS, "run", *loaded, *runs)
    assert done.returned("load_lora") == [0, 0, 0]
    for run, name in enumerate(["", *order], start=1):
        assert done.tokens(run) == wanted[name], f"run {run} with {name!r}"


def test_it_is_said_that_an_adapter_was_loaded(driver: Driver, model: Path, adapters: Mapping[str, Path]) -> None:
    done = driver(f"init:{model}", *load(adapters["one"], "a"))
    assert "I rksim: LoRA 'a' changes 14 layers" in done.log.splitlines()


def test_an_async_run_and_hidden_states_use_it_too(driver: Driver, model: Path, adapters: Mapping[str, Path]) -> None:
    loaded = load(adapters["one"], "a")
    done = driver(*GREEDY, f"init:{model}", *loaded, TOKENS, "lora:a", "run_async", "wait", "run", "mode:1", "run",
                  "no_lora", "run")  # fmt: skip
    assert done.tokens(1) == done.tokens(2)
    assert np.abs(done.hidden(3) - done.hidden(4)).max() > 0.1


def test_an_adapter_may_be_loaded_while_a_run_goes_on(
    driver: Driver, model: Path, adapters: Mapping[str, Path], greedy: Callable[..., list[int]]
) -> None:
    path = f"adapter:{adapters['one']},a,1"
    done = driver(*GREEDY, f"init:{model}", path, TOKENS, "at:2", "do:load_lora", "run", "at:-1", "lora:a", "run")
    assert done.returned("load_lora") == [0]
    assert (done.tokens(1), done.tokens(2)) == (greedy(), greedy("one"))


def edited(source: Path, target: Path, **changes: Any) -> Path:
    """A copy of an adapter with other metadata (None: left out), without or with other tensors."""
    reader = gguf.GGUFReader(source)
    keys = {"type": "adapter", "adapter": "lora", "alpha": 8.0, "architecture": "llama", **changes}
    writer = gguf.GGUFWriter(target, keys["architecture"])
    if keys["type"]:
        writer.add_type(keys["type"])
    if keys["adapter"]:
        writer.add_string("adapter.type", keys["adapter"])
    if keys["alpha"] is not None:
        writer.add_float32("adapter.lora.alpha", keys["alpha"])
    if "alignment" in keys:
        writer.add_custom_alignment(keys["alignment"])
    change = changes.get("tensors", lambda name, value: {name: value})
    for tensor in reader.tensors:
        for name, value in change(tensor.name, np.array(tensor.data)).items():
            writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def only(suffix: str, change: Callable[[Any], Any]) -> Callable[[str, Any], dict[str, Any]]:
    return lambda name, value: {name: change(value) if name.endswith(suffix) else value}


def add_a_norm(name: str, value: Any) -> dict[str, Any]:
    return {name: value, **({"blk.0.attn_norm.weight": value[0]} if name == "blk.0.attn_q.weight.lora_a" else {})}


def spoil(value: Any) -> Any:
    value[1, 2] = np.nan
    return value


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "a model": ({"type": "model"}, "is not a LoRA adapter for this model: general.type is 'model', expected 'adapter'"),
    "no type": ({"type": None}, "general.type is '', expected 'adapter'"),
    "a control vector": ({"adapter": "cvec"}, "adapter.type is 'cvec', expected 'lora'"),
    "another architecture": ({"architecture": "qwen2"}, "general.architecture is 'qwen2', expected 'llama'"),
    "alpha": ({"alpha": float("inf")}, "adapter.lora.alpha is not a finite number"),
    "no tensors": ({"tensors": lambda *_: {}}, "holds no tensors"),
    "a norm": ({"tensors": add_a_norm}, "tensor blk.0.attn_norm.weight is not one of a LoRA"),
    "half a pair": ({"tensors": lambda n, v: {} if n == "blk.1.ffn_up.weight.lora_b" else {n: v}},
                    "only one of blk.1.ffn_up.weight.lora_a and blk.1.ffn_up.weight.lora_b"),
    "more layers": ({"tensors": lambda n, v: {n.replace("blk.1.", "blk.7."): v}},
                    "changes blk.7.attn_k.weight, which is no linear layer of this model: is it for another one?"),
    "the embedding": ({"tensors": lambda n, v: {n.replace("blk.0.attn_q", "token_embd"): v}},
                      "changes token_embd.weight, which is no linear layer"),
    "wider": ({"tensors": only("blk.0.attn_q.weight.lora_a", lambda _: np.ones((4, 65), np.float32))},
              "the adapter of blk.0.attn_q.weight has the shapes [65, 4] and [4, 64], the model asks for [64, rank]"),
    "taller": ({"tensors": only("blk.0.attn_q.weight.lora_b", lambda _: np.ones((96, 4), np.float32))},
               "the adapter of blk.0.attn_q.weight has the shapes [64, 4] and [4, 96]"),
    "two ranks": ({"tensors": only("blk.1.ffn_down.weight.lora_a", lambda v: v[:3])},
                  "the adapter of blk.1.ffn_down.weight has the shapes [160, 3] and [4, 64]"),
    "not finite": ({"tensors": only("blk.1.attn_v.weight.lora_b", spoil)},
                   "tensor blk.1.attn_v.weight.lora_b has a value that is not finite"),
    "integers": ({"tensors": only("blk.1.attn_v.weight.lora_b", lambda v: v.astype(np.int8))},
                 "tensor blk.1.attn_v.weight.lora_b is neither F32 nor F16"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_an_adapter_that_is_none_or_for_another_model(
    driver: Driver, model: Path, adapters: Mapping[str, Path], tmp_path: Path, case: str
) -> None:
    changes, said = BAD[case]
    path = edited(adapters["one"], tmp_path / "bad.gguf", **changes)
    done = driver(*GREEDY, f"init:{model}", *load(path, "a"), TOKENS, "lora:a", "run", "no_lora", "run")
    assert done.returned("load_lora") == [-1] and done.returned("run") == [-1, 0]
    first, second = errors(done.log)
    assert first.startswith(f"rkllm_load_lora: {path}") and said in first
    assert second == "rkllm_run: no LoRA called 'a' is loaded"
    assert done.states(2)[-1] == FINISH


def files_that_are_no_gguf(source: Path, folder: Path) -> Mapping[str, Path]:
    whole = source.read_bytes()
    found = {"missing": folder / "missing", "folder": folder, "empty": folder / "empty", "text": folder / "text",
             "cut": folder / "cut", "model": folder / "model"}  # fmt: skip
    for name, data in {"empty": b"", "text": b"hello" * 99, "cut": whole[: len(whole) // 2]}.items():
        found[name].write_bytes(data)
    return found


def test_files_that_are_missing_or_damaged(
    driver: Driver, model: Path, adapters: Mapping[str, Path], tmp_path: Path
) -> None:
    files = files_that_are_no_gguf(adapters["one"], tmp_path)
    files = {**files, "model": model}
    done = driver(f"init:{model}", *[word for name, path in files.items() for word in load(path, name)])
    assert done.returned("load_lora") == [-1] * len(files)
    for (name, path), line in zip(files.items(), errors(done.log), strict=True):
        assert line.startswith("rkllm_load_lora: ") and str(path) in line, name


@pytest.mark.parametrize(
    ("adapter", "said"),
    [
        ("-,a,1", "lora_adapter_path is NULL"),
        ("FILE,-,1", "lora_adapter_name is NULL"),
        ("FILE,,1", "lora_adapter_name is empty: runs choose an adapter by its name"),
        ("FILE,a,nan", "scale is not a finite number"),
        ("FILE,a,-inf", "scale is not a finite number"),
    ],
)
def test_arguments(driver: Driver, model: Path, adapters: Mapping[str, Path], adapter: str, said: str) -> None:
    done = driver(f"init:{model}", f"adapter:{adapter.replace('FILE', str(adapters['one']))}", "load_lora")
    assert done.returned("load_lora") == [-1]
    assert errors(done.log) == [f"rkllm_load_lora: {said}"]


def test_a_name_twice(
    driver: Driver, model: Path, adapters: Mapping[str, Path], greedy: Callable[..., list[int]]
) -> None:
    """The second is refused, and the first stays what the name means."""
    loads = [*load(adapters["one"], "a"), *load(adapters["two"], "a"), *load(adapters["two"], "b")]
    done = driver(*GREEDY, f"init:{model}", *loads, TOKENS, "lora:a", "run", "lora:c", "run")
    assert done.returned("load_lora") == [0, -1, 0]
    assert errors(done.log) == [
        "rkllm_load_lora: a LoRA called 'a' is loaded already: give it another name",
        "rkllm_run: no LoRA called 'c' is loaded; there are a, b",
    ]
    assert done.tokens(1) == greedy("one")


def test_fp16_adapters_and_other_alignments(model: Path, adapters: Mapping[str, Path], tmp_path: Path) -> None:
    """What other writers of the format make of the same numbers, which fp16 holds exactly."""
    half = edited(adapters["one"], tmp_path / "half.gguf", tensors=lambda n, v: {n: v.astype(np.float16)})
    wide = edited(adapters["one"], tmp_path / "wide.gguf", alignment=256)
    found = []
    with SimModel(model, threads=2) as opened:
        for path in (adapters["one"], half, wide):
            opened.use_lora(path)
            found.append(opened.logits(IDS))
    np.testing.assert_array_equal(found[1], found[0])
    np.testing.assert_array_equal(found[2], found[0])


def test_without_alpha_the_scale_stands_alone(model: Path, adapters: Mapping[str, Path], tmp_path: Path) -> None:
    """As in llama.cpp. The adapters here have alpha 8 and rank 4."""
    with SimModel(model, threads=2) as opened:
        opened.use_lora(edited(adapters["one"], tmp_path / "none.gguf", alpha=None), 2.0)
        found = opened.logits(IDS)
        opened.use_lora(adapters["one"], 1.0)
        np.testing.assert_array_equal(found, opened.logits(IDS))


@pytest.mark.parametrize("release", ["1.2.0", "1.3.1"])
def test_what_runs_of_different_adapters_left_is_not_reused(
    twins: Callable[[str], Twin], model: Path, adapters: Mapping[str, Path], release: str, tmp_path: Path
) -> None:
    """Of one conversation; nor is it saved, since a prompt cache names one adapter."""
    twin = twins(release)
    begin = ("set:top_k=1", "set:repeat_penalty=1", "set:max_new_tokens=2", f"init:{model}")
    mixed = (f"adapter:a^{adapters['one']}", "lora:a", "history:1", TOKENS, "run", "lora:", "tokens:7", "run")
    done = twin(*begin, *mixed, "history:0", TOKENS + ",7", "run")
    alone = twin(*begin, TOKENS + ",7", "run")
    assert done.returned("load_lora") == [0] and done.tokens(3) == alone.tokens()
    assert "were there already" not in done.log
    again = twin(*begin, *mixed, "history:0", TOKENS + ",7", "run", TOKENS + ",7,8", "run")
    assert "5 of 6 tokens were there already" in again.log  # of one adapter once more
    saved = twin(*begin, *mixed, f"cache:{tmp_path}/c", "save:1", "run")
    assert saved.returned("run")[-1] == -1 and not (tmp_path / "c").exists()
    assert "cannot be saved: its runs had different LoRAs" in saved.log
