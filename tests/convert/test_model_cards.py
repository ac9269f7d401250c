"""What a model's own card and licence say, and what becomes of them in a bundle's: front matter from anybody."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rk3588 import bundle
from rk3588.errors import RkError
from rkconvert.cards.front_matter import parsed
from tests import models
from tests.convert import test_model_folders
from tests.convert.test_model_folders import made, rkconvert

original, model = test_model_folders.original, test_model_folders.model

FRONT_MATTER = {
    "aliases": ("a: &a [x, x]\nb: [*a, *a]\nlicense: *a", "it has an alias (a)"),
    "merges": ("a: &a {x: 1}\nb:\n  <<: *a", "it has an alias (a)"),
    "depth": ("a: " + "[" * 100, "it is nested too deeply"),
    "great depth": ("a: " + "[" * 100_000, "nest"),
    "an object": ("a: !!python/object/apply:os.system [true]", "could not determine a constructor for the tag"),
    "no day": ("a: 2024-99-99", "month must be in 1..12"),
    "no mapping": ("- a", "it is no mapping of names"),
    "other keys": ("1: a", "it is no mapping of names"),
    "lists for keys": ("[a]: b", "found unhashable key"),
    "no YAML": ("a: [b", "did not find expected"),
    "length": ("a: " + "x" * (1 << 20), "it has 10485"),
    "control characters": ("a: \x1b[2J", "line 2: a character that YAML does not allow"),
}


@pytest.mark.parametrize("case", FRONT_MATTER)
def test_hostile_front_matter_is_not_used_and_told(model: Path, case: str) -> None:
    text, why = FRONT_MATTER[case]
    (model / "README.md").write_text(f"---\n{text}\n---\n# Tiny\n")
    with pytest.raises(ValueError, match=r".") as caught:
        parsed((model / "README.md").read_text())
    assert why in str(caught.value)
    folder, said = made(model)
    assert "README.md: its front matter cannot be used (" in said and said.count("\n") == 1
    assert "licence" in (folder / "README.md").read_text()


FORMS = ["tags: [{a: b}, [c], d, 3]", "license: {a: b}", "license: [mit, apache-2.0]", "tags: x"]


@pytest.mark.parametrize("text", FORMS)
def test_front_matter_of_another_form(model: Path, text: str) -> None:
    (model / "README.md").write_text(f"---\n{text}\n---\n# Tiny\n")
    folder, said = made(model)
    assert said == "" and "# Tiny" in (folder / "README.md").read_text()
    done = rkconvert("card", folder)
    assert done.exception is None


LICENCES = {
    "             Apache License\n           Version 2.0, January": "Apache License 2.0",
    "MIT License\n\nCopyright (c)": "MIT License",
    "LLAMA 3.1 COMMUNITY LICENSE AGREEMENT\nLlama 3.1 Version": "Llama 3.1 Community License",
}  # fmt: skip


@pytest.mark.parametrize("text", LICENCES, ids=lambda t: t.split()[0])
def test_a_licence_that_is_known_by_its_text(model: Path, text: str) -> None:
    (model / "LICENSE").write_text(text)
    card = (made(model)[0] / "README.md").read_text()
    assert f"The licence is the original model's: {LICENCES[text]}." in card


def test_a_licence_that_a_gguf_file_states(tmp_path: Path) -> None:
    import gguf

    file = models.tiny_gguf(tmp_path / "g" / "tiny.gguf")
    reader, writer = gguf.GGUFReader(file), gguf.GGUFWriter(tmp_path / "licensed.gguf", "llama")
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            kind = field.types[0]
            writer.add_key_value(key, field.contents(), kind, field.types[-1] if len(field.types) > 1 else None)
    writer.add_license("apache-2.0")
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    card = (made(tmp_path / "licensed.gguf")[0] / "README.md").read_text()
    assert "The licence is the original model's: Apache License 2.0." in card and "license: apache-2.0" in card


@pytest.mark.parametrize(
    "changes",
    [{"dtype": "w9a9"}, {"model": {}}, {"model": {"parameters": "x"}}, {"source": {}}, {"converter": 3},
     {"hybrid": {}}, {"toolkit": {}}, {"accuracy": {"perplexity": "x"}},
     {"lora": {"mode": "merge", "adapters": [{"name": "a", "scale": 1}]}}],
)  # fmt: skip
def test_a_card_of_a_manifest_that_is_not_ours(model: Path, changes: dict[str, Any]) -> None:
    folder, _ = made(model)
    where = folder / bundle.MANIFEST
    where.write_text(json.dumps({**json.loads(where.read_text()), **changes}))
    done = rkconvert("card", folder)
    assert isinstance(done.exception, RkError), done.exception
    assert str(folder) in str(done.exception) and done.stdout == ""
