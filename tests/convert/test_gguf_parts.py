"""A GGUF model in several files: read as the one that it is, or refused with what is missing."""

from __future__ import annotations

import filecmp
import hashlib
import re
import shutil
from pathlib import Path
from typing import Any

import gguf
import pytest

from rk3588 import bundle, quant
from rk3588.errors import CheckpointError
from rk3588.gguf import shape_of
from rkconvert.build import convert
from rkconvert.commands import default_name
from rkconvert.sources.base import Origin
from rkconvert.sources.hub import HubModel, peek
from rkconvert.sources.opening import open_checkpoint, open_source
from rkconvert.toolkit import releases
from rkconvert.toolkit.preflight import check_model
from tests import models
from tests.convert.test_hub import LocalRepository
from tests.plans import make_plan

TINY = models.Tiny()


def whole(folder: Path) -> Path:
    return models.write_gguf(folder / "tiny.gguf", TINY, TINY.weights())


def parts(folder: Path, tensors: int = 8, **options: Any) -> list[Path]:
    """The model in parts of so many tensors, as the gguf package writes them."""
    options = {"split_max_tensors": tensors, **options}
    models.write_gguf(folder / "tiny.gguf", TINY, TINY.weights(), **options)
    return sorted(folder.glob("*.gguf"))


def made(model: Path, out: Path) -> bundle.Bundle:
    (folder,) = convert(make_plan(open_source(model), "tiny", out, [quant.scheme("w8a8")]))
    return bundle.read(folder)


@pytest.mark.parametrize("options", [{}, {"small_first_shard": True}])
def test_any_part_stands_for_the_whole_model(tmp_path: Path, options: dict[str, Any]) -> None:
    wanted = made(whole(tmp_path / "whole"), tmp_path / "0")
    files = parts(tmp_path / "parts", **options)
    assert len(files) > 2
    for number, file in enumerate(files, 1):
        found = made(file, tmp_path / str(number))
        assert wanted.sim_model and found.sim_model
        assert filecmp.cmp(wanted.sim_model, found.sim_model, shallow=False)
        assert found.manifest["source"]["files"] == [
            {"path": f.name, "size": f.stat().st_size, "sha256": hashlib.sha256(f.read_bytes()).hexdigest()}
            for f in files
        ]
        assert shape_of(file) == open_source(file).config.shape("tiny")
        assert default_name(file) == "tiny"
        assert open_checkpoint(file).tensors.keys() == open_checkpoint(tmp_path / "whole/tiny.gguf").tensors.keys()


def edit(path: Path, key: str, value: int) -> None:
    """Set a key of one number in place."""
    reader = gguf.GGUFReader(path, "r+")
    field = reader.fields[key]
    field.parts[field.data[0]][0] = value
    reader.data.flush()


def missing(files: list[Path]) -> None:
    files[1].unlink()


def renamed(files: list[Path]) -> None:
    files[0] = files[0].rename(files[0].with_name("model.gguf"))


def told_apart(files: list[Path]) -> None:
    shutil.copyfile(files[2], files[1])


def said_to_be_another(files: list[Path]) -> None:
    edit(files[1], "split.count", 4)


def twice(files: list[Path]) -> None:
    shutil.copyfile(files[2], files[1])
    edit(files[1], "split.no", 1)


def of_another_size(files: list[Path]) -> None:
    edit(files[0], "split.tensors.count", 22)


def damaged(files: list[Path]) -> None:
    edit(files[0], "split.no", 3)


def called_so(files: list[Path]) -> None:
    models.write_gguf(files[0].with_name("other.gguf"), TINY, TINY.weights()).replace(files[0])


def alone_and_unsaid(files: list[Path]) -> None:
    """The count was lost, and so was the name: what is left is a part without a head."""
    edit(files[0], "split.count", 0)
    renamed(files)


WRONG = {
    missing: r"gguf is part 1 of 3 of a model, and beside it there is no tiny-00002-of-00003.gguf: download it",
    renamed: r"model.gguf is part 1 of 3 of a model, and is not called NAME-00001-of-00003.gguf",
    told_apart: r"tiny-00002-of-00003.gguf is called part 2 of 3 of a model, and its metadata .* say otherwise",
    said_to_be_another: r"tiny-00002-of-00003.gguf is called part 2 of 3 of a model, and its metadata .* say otherwise",
    twice: r"tensor \S+ is in tiny-00002-of-00003.gguf as well",
    of_another_size: r"is part of a model of 22 tensors \(split.tensors.count\), and there are 21",
    damaged: r"has 3 parts by split.count, and split.no is 3: the file is damaged",
    called_so: r"is called part 1 of 3 of a model, but its metadata \(split.count\) say nothing of it",
    alone_and_unsaid: r"model.gguf is part of a model of 21 tensors \(split.tensors.count\), and there are 8",
}


@pytest.mark.parametrize("change", WRONG, ids=lambda change: change.__name__)
def test_parts_that_are_not_one_model(tmp_path: Path, change: Any) -> None:
    files = parts(tmp_path)
    change(files)
    with pytest.raises(CheckpointError, match=WRONG[change]):
        open_source(files[0])
    with pytest.raises(CheckpointError, match=WRONG[change]):
        shape_of(files[0])


def test_a_part_without_the_output_is_no_model_that_shares_its_embedding(tmp_path: Path) -> None:
    files = parts(tmp_path, 20)
    assert open_source(files[0]).config.tied is False
    files[1].unlink()
    with pytest.raises(CheckpointError, match="part 1 of 2"):
        open_source(files[0])


def test_the_shape_of_a_model_of_another_family(tmp_path: Path) -> None:
    path = whole(tmp_path)
    path.write_bytes(path.read_bytes().replace(b"llama", b"gemma"))
    assert (shape_of(path).family, shape_of(path).vocab, shape_of(path).layers) == ("gemma", 384, 2)
    path.write_bytes(path.read_bytes().replace(b"gemma", b"gamma"))
    with pytest.raises(CheckpointError, match=r"tiny.gguf: model_type 'gamma' is not known here"):
        shape_of(path)


def test_a_folder_of_parts_names_one_for_each_model(tmp_path: Path) -> None:
    parts(tmp_path)
    whole(tmp_path)
    with pytest.raises(CheckpointError, match=re.escape("give one of them: tiny-00001-of-00003.gguf, tiny.gguf")):
        open_source(tmp_path)


def test_rkllm_toolkit_is_given_one_file(tmp_path: Path) -> None:
    models.write_gguf(tmp_path / "tiny.gguf", TINY, TINY.weights(), "F16", split_max_tensors=8)
    part = tmp_path / "tiny-00002-of-00003.gguf"
    likely, _ = check_model(open_checkpoint(part), [quant.scheme("w8a8")], releases.of("1.1.1"))
    assert any("in 3 parts, and rkllm-toolkit is given one file: join the parts" in str(one.error) for one in likely)


def test_a_plan_from_the_hub_asks_for_the_heads_of_all_parts(tmp_path: Path) -> None:
    files = parts(tmp_path)
    names = tuple(file.name for file in files)
    for asked in names:
        repository = LocalRepository(tmp_path)
        found = peek(HubModel(repository, Origin("user/repo", "main", "0" * 40, asked), (), names))
        assert found.shape == open_source(files[0]).config.shape(asked)
        assert len(repository.pieces) == 3
