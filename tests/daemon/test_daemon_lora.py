"""An adapter of the bundle is a model of its own name, and changes no other answer."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest

from rk3588 import lora
from rk3588.errors import BundleError, RequestRefused, UsageError
from rkruntime.daemon.engine import WorkerEngine
from rkruntime.daemon.models import Models
from rkruntime.model import Model, Settings
from tests.convert.test_convert_cli import rkconvert
from tests.daemon_server import served, until
from tests.golden_lora import cases


def answer(bundle: Path, adapter: str | None) -> str:
    settings = Settings(temperature=0.0, repeat_penalty=1.0, lora=adapter)
    with Model(bundle, settings, print) as model, closing(model.answer(model.prompts.plain("Ahoy"))) as parts:
        return "".join(part for part, _ in zip(parts, range(12)))


def test_an_adapter_answers_under_its_name(tmp_path: Path) -> None:
    done = rkconvert(cases.base_model(tmp_path / "tiny"), "-o", tmp_path, "--dtype", "w8a8", "--lora", cases.ADAPTER)
    bundle = Path(done.stdout.strip())
    plain, adapted = answer(bundle, None), answer(bundle, "pirate")
    assert plain != adapted
    with served(bundle, WorkerEngine, temperature=0.0, repeat_penalty=1.0) as running:
        until(lambda: running.get("/ready").status == 200)
        names = [model["id"] for model in running.get("/v1/models").json["data"]]
        assert names == ["tiny", "tiny:background", "tiny:pirate", "tiny:pirate:background"]
        for name, expected in zip([*names, "tiny"], [plain, plain, adapted, adapted, plain], strict=True):
            text = running.complete("Ahoy", model=name, max_tokens=40).json["choices"][0]["text"]
            assert text.startswith(expected), name
        tags = [model["name"] for model in running.get("/api/tags").json["models"]]
        assert tags == ["tiny:latest", "tiny:background", "tiny:pirate", "tiny:pirate:background"]
        asked = {"prompt": "Ahoy", "raw": True, "stream": False, "options": {"num_predict": 40}}
        for name, expected in (("tiny:w8a8", plain), ("tiny:w8a8:pirate", adapted), ("tiny:latest:pirate", adapted)):
            assert running.post("/api/generate", {**asked, "model": name}).json["response"].startswith(expected), name
        assert running.post("/api/show", {"model": "tiny:pirate"}).json["details"]["parent_model"] == "tiny"
        vectors = [running.post("/api/embed", {"model": name, "input": "Ahoy"}).json["embeddings"] for name in names]
        assert vectors[0] == vectors[1] != vectors[2] == vectors[3]


@pytest.mark.parametrize("name", ["background", "latest", "w8a8", "w8a8_g128", "fp32"])
def test_an_adapter_cannot_be_called_what_means_something_else(name: str) -> None:
    with pytest.raises(BundleError, match=f"a LoRA called '{name}'.*another name"):
        Models("m", "w8a8", ["pirate", name], 0, "sim")
    with pytest.raises(UsageError, match=f"cannot be called '{name}'.*another name"):
        lora.checked_name(name, f"ADAPTER:{name}")


@pytest.mark.parametrize(
    ("asked", "id"),
    [
        (None, "m:1b"), ("m:1b", "m:1b"), ("m:1b:latest", "m:1b"), ("m:1b:w8a8", "m:1b"),
        ("m:1b:pirate", "m:1b:pirate"), ("m:1b:w8a8:pirate", "m:1b:pirate"),
        ("m:1b:latest:background", "m:1b:background"), ("m:1b:w8a8:pirate:background", "m:1b:pirate:background"),
    ],
)  # fmt: skip
def test_the_names_of_a_model(asked: str | None, id: str) -> None:
    assert Models("m:1b", "w8a8", ["pirate"], 0, "sim").find(asked).id == id


@pytest.mark.parametrize(
    "asked", ["", "m", "M:1b", "m:1b:fp16", "m:1b:w8a8_g128", "m:1b:", "m:1b:latest:w8a8", "m:1b:w8a8:", "m:1blatest"]
)
def test_other_names_are_none(asked: str) -> None:
    with pytest.raises(RequestRefused, match="there is m:1b, m:1b:background"):
        Models("m:1b", "w8a8", [], 0, "sim").find(asked)
