"""An adapter of the bundle is a model of its own name, and changes no other answer."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from rkruntime.daemon.engine import WorkerEngine
from rkruntime.daemon.models import Models
from rkruntime.model import Model, Settings
from tests.convert.test_convert_cli import rkconvert
from tests.daemon_server import served, until
from tests.golden_lora import cases


def answer(bundle: Path, lora: str | None) -> str:
    settings = Settings(temperature=0.0, repeat_penalty=1.0, lora=lora)
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


def test_an_adapter_called_background_hides_nothing() -> None:
    models = Models("m", ["background"], 0, "sim")
    assert list(models.all) == ["m", "m:background"]
    assert models.find("m:background").lora is None
