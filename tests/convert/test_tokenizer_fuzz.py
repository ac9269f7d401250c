"""What lies beside the weights, damaged in any way: a bundle whose tokenizer the runtime loads, or one sentence."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rk3588 import hostlib, quant, sampling
from rk3588.errors import RkError
from rkconvert import bundle_texts
from rkconvert.artifact import header
from rkconvert.sources.opening import open_source
from rkconvert.tokenizers import gguf_metadata, tokenizer_json
from tests import models
from tests.convert.test_gguf_vocabulary import GPT2, LLAMA
from tests.plans import make_plan
from tests.sim.test_sentencepiece_model import trained

FILES = ("tokenizer.json", "tokenizer_config.json", "generation_config.json", "added_tokens.json")
LONG = "a number of 5000 digits"  # which Python's own json refuses to write
TEMPLATE = {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "a"}}, {"Sequence": {"id": "A"}}]}
ODD: st.SearchStrategy[Any] = st.sampled_from(
    [None, True, False, 0, 1, -1, 383, 384, 10**9, 10**300, LONG, 1.0, 1.5, float("inf"), float("nan"), "", "x", "a b",
     "\ud800", "x" * 3000, [], [None], ["x"], [[]], [1, 2], {}, {"a": 1}, {"content": 5}, {"id": 1, "content": "x"},
     {"type": "Sequence"}, {"type": "ByteLevel"}, {**TEMPLATE, "single": []}, {**TEMPLATE, "single": None},
     {"type": "Sequence", "processors": [TEMPLATE, 5]}, [{"name": "default"}], [{"name": "a", "template": "b"}],
     {"default": "{{ 1 }}"}, {"9" * 5000: {"content": "x"}}, {"5": {"content": "x", "special": 3}}, {"5": 5}]
)  # fmt: skip
KEYS = st.sampled_from(
    ["chat_template", "added_tokens_decoder", "add_bos_token", "add_eos_token", "bos_token", "eos_token", "unk_token",
     "additional_special_tokens", "legacy", "add_prefix_space", "eos_token_id", "temperature", "top_k",
     "post_processor", "normalizer", "pre_tokenizer", "added_tokens", "model", "9" * 5000, "5"]
)  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """One with a tokenizer.json, one with SentencePiece's own file."""
    place = tmp_path_factory.mktemp("damaged")
    shape: dict[str, Any] = {"layers": 1, "hidden": 16, "heads": 2, "kv_heads": 1, "head_dim": 8, "intermediate": 16}
    found = {name: models.tiny_llama(place / name, vocab_size=rows, **shape) for name, rows in (("a", 384), ("b", 705))}
    (found["b"] / "tokenizer.json").unlink()
    (found["b"] / "tokenizer.model").write_bytes(trained())
    (found["b"] / "added_tokens.json").write_text(json.dumps({"<more>": 700}))
    decoder = {"701": {"content": "<tool>", "special": True, "lstrip": True, "normalized": False}}
    (found["b"] / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder, "legacy": False}))
    processor = {"type": "Sequence", "processors": [TEMPLATE]}
    whole = json.loads((found["a"] / "tokenizer.json").read_text())
    (found["a"] / "tokenizer.json").write_text(json.dumps({**whole, "post_processor": processor}))
    return found


def damaged(value: Any, data: st.DataObject) -> Any:
    """``value`` with one thing changed, added or taken away, at any depth."""
    places = list(value)[:12] if isinstance(value, dict) else list(range(min(len(value), 4)))
    new = data.draw(KEYS) if isinstance(value, dict) else len(value)
    place = data.draw(st.sampled_from([*places, new]))
    inside = value[place] if place in places else None
    if isinstance(inside, (dict, list)) and inside and data.draw(st.integers(0, 3)):
        return with_item(value, place, damaged(inside, data))
    if place in places and not data.draw(st.integers(0, 3)):
        return without_item(value, place)
    return with_item(value, place, data.draw(ODD))


def with_item(value: Any, place: Any, item: Any) -> Any:
    changed = copy.copy(value)
    if place == len(changed) and isinstance(changed, list):
        changed.append(item)
    else:
        changed[place] = item
    return changed


def without_item(value: Any, place: Any) -> Any:
    changed = copy.copy(value)
    del changed[place]
    return changed


@given(st.data())
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=80)
def test_damaged_files_are_read_or_refused_in_a_sentence(
    folders: Mapping[str, Path], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    source = folders[data.draw(st.sampled_from(sorted(folders)))]
    place = tmp_path_factory.mktemp("one")
    try:
        model = place / "m"
        model.mkdir()
        for file in source.iterdir():
            os.link(file, model / file.name)
        there = st.sampled_from([name for name in FILES if (source / name).exists()])
        for name in data.draw(st.lists(there, min_size=1, max_size=2, unique=True)):
            value = damaged(json.loads((source / name).read_text()), data)
            (model / name).unlink()  # a link to the one that is whole
            (model / name).write_text(json.dumps(value).replace(f'"{LONG}"', "9" * 5000))
        check(model, place)
    finally:
        shutil.rmtree(place)


def check(model: Path, place: Path) -> None:
    try:
        found = open_source(model)
    except RkError as error:
        text = str(error).replace(str(place), "")
        assert "\n" not in text and len(text) < 800, text[:2000]
        return
    plan = make_plan(found, "tiny", place, [quant.scheme("fp16")], threads=1)
    manifest = bundle_texts.make_manifest(plan, plan.artifacts[0], {})
    assert sampling.is_valid(manifest.get("sampling", {}))
    json.dumps(manifest).encode()
    header.write_tokenizer(place / "t.gguf", "tiny", found.vocabulary)
    with hostlib.SimModel(place / "t.gguf", vocab_only=True) as opened:
        opened.tokenise("a text <tool>")


GGUF_ODD = st.sampled_from(
    [None, True, False, 0, 1, 5, -1, 10**12, 1.5, float("nan"), "", "x", "\udcff", "x" * 3000, [], [1], [1.0], ["x"],
     [True], ["a b", "b"], ["a b", "ab"], ["a" * 2000], ["\udcff"], [9] * 300, [1] * 6, [float("inf")] * 6, [0.0] * 265]
)  # fmt: skip
GGUF_KEYS = st.sampled_from(
    ["model", "pre", "tokens", "token_type", "scores", "merges", "bos_token_id", "eos_token_id", "unknown_token_id",
     "eot_token_id", "fim_pre_token_id", "fim_pad_token_id", "add_bos_token", "add_eos_token", "add_space_prefix",
     "tokenizer.chat_template", "general.name", "general.architecture"]
)  # fmt: skip


@given(st.booleans(), st.dictionaries(GGUF_KEYS, GGUF_ODD, min_size=1, max_size=3))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
def test_a_damaged_tokenizer_of_a_gguf_file_is_read_or_refused(
    tmp_path: Path, byte_level: bool, changes: dict[str, Any]
) -> None:
    values: dict[str, Any] = {"general.architecture": "llama", **(GPT2 if byte_level else LLAMA), **changes}
    found = {key if "." in key else f"tokenizer.ggml.{key}": value for key, value in values.items()}
    found = {key: value for key, value in found.items() if value is not None}
    try:
        vocabulary = gguf_metadata.read_vocabulary(found, Path("m.gguf"), 300)
    except RkError as error:
        assert str(error).startswith("m.gguf") and "\n" not in str(error) and len(str(error)) < 800
        return
    assert tokenizer_json.obstacle(vocabulary) or json.dumps(tokenizer_json.files(vocabulary, 9))
    header.write_tokenizer(tmp_path / "t.gguf", "tiny", vocabulary)
    with hostlib.SimModel(tmp_path / "t.gguf", vocab_only=True) as opened:
        opened.tokenise("ab <s> c")
