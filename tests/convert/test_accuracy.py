"""``rkconvert accuracy`` and ``rkconvert card``: measured once, and told wherever the bundle is described."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from rk3588 import bundle, hostlib
from rkconvert import accuracy as measuring
from rkconvert.cli import cli
from tests import models
from tests.toolkit_double import rkconvert

ENV = dict(os.environ)


@pytest.fixture
def bundles(tmp_path: Path) -> Path:
    model = models.tiny_llama(tmp_path / "Tiny")
    (model / "README.md").write_text("---\nlicense: mit\n---\n# Original\n\nIts text.\n")
    done = rkconvert(model, "-o", tmp_path, "--dtype=w8a8", "--dtype=w8a8_g128", "--dtype=fp32", env=ENV)
    assert done.returncode == 0, done.stderr
    return tmp_path


def test_measured_noted_and_shown(bundles: Path) -> None:
    (bundles / "read.txt").write_text("The quick brown fox jumps over the lazy dog. " * 30)
    folder = bundles / "Tiny-rk3588-w8a8"
    before = bundle.read(folder).manifest
    done = rkconvert("accuracy", folder, "--text", bundles / "read.txt", "--tokens", 200, "--json", env=ENV)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)

    truth, own = (hostlib.SimModel(bundles / f"Tiny-rk3588-{dtype}" / "model.sim.gguf") for dtype in ("fp32", "w8a8"))
    with truth, own:
        ids = truth.tokenise((bundles / "read.txt").read_text(), add_bos=bool(truth.info.add_bos))[:200]
        logits = own.logits(ids)[:-1].astype(np.float64)
        same = float((truth.logits(ids)[:-1].argmax(1) == logits.argmax(1)).mean())
    loss = np.log(np.exp(logits).sum(1)) - logits[np.arange(199), ids[1:]]
    assert row["perplexity"] == pytest.approx(float(np.exp(loss.mean())), rel=1e-6)
    assert row["agreement"] == same and row["tokens"] == 200 and row["text"] == "read.txt"

    after = bundle.read(folder)
    bundle.verify(after)
    assert after.manifest["accuracy"] == {key: row[key] for key in row if key not in ("bundle", "path", "dtype")}
    assert {k: v for k, v in after.manifest.items() if k not in ("accuracy", "files")} == {
        k: v for k, v in before.items() if k != "files"
    }
    card = (folder / "README.md").read_text()
    assert f"perplexity {round(row['perplexity']):,} (fp32: " in card and card.rstrip().endswith("Its text.")
    assert [p.name for p in bundles.iterdir() if p.name.startswith(".")] == []

    again = rkconvert("accuracy", folder, "--text", bundles / "read.txt", "--tokens", 200, "--json", env=ENV)
    assert json.loads(again.stdout) == [row]
    assert (folder / "README.md").read_text() == card


def test_one_card_for_several(bundles: Path) -> None:
    folders = [bundles / f"Tiny-rk3588-{dtype}" for dtype in ("w8a8", "w8a8_g128")]
    done = rkconvert("card", *folders, env=ENV)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("---\n") and "# Tiny for the RK3588" in done.stdout
    assert done.stdout.count("\n| w8a8") == 2 and done.stdout.count("# Original\n") == 1
    assert "quantization:\n- w8a8\n- w8a8_g128\n" in done.stdout
    alone = rkconvert("card", folders[0], env=ENV)
    assert alone.stdout == (folders[0] / "README.md").read_text()


def test_nothing_to_compare_with(bundles: Path) -> None:
    shutil.rmtree(bundles / "Tiny-rk3588-fp32")
    done = rkconvert("accuracy", bundles / "Tiny-rk3588-w8a8", env=ENV)
    assert done.returncode == 1
    assert "has no fp32 bundle of the same model beside it to compare with: make one with" in done.stderr
    other = models.tiny_llama(bundles / "other", seed=9)
    rkconvert(other, "--name=Tiny", "-o", bundles, "--dtype=fp32", env=ENV)
    assert rkconvert("accuracy", bundles / "Tiny-rk3588-w8a8", env=ENV).stderr == done.stderr


def test_a_terminal_shows_it_at_once_and_in_small_steps(bundles: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each of both models, within a window too; Ctrl-C in such a step is heeded."""
    folder, told = bundles / "Tiny-rk3588-w8a8", []

    @contextmanager
    def shown() -> Iterator[Callable[[str, int, int], None]]:
        yield lambda what, done, total: told.append((what, done, total))

    monkeypatch.setattr("rkconvert.progress.shown", shown)
    before: list[int] = []
    measure = measuring.measure

    def counted(*given: Any, **more: Any) -> list[measuring.Accuracy]:
        before.append(len(told))
        return measure(*given, **more)

    monkeypatch.setattr(measuring, "measure", counted)
    done = CliRunner().invoke(cli, ["accuracy", str(folder), "--tokens", "600"])
    assert done.exit_code == 0, done.output
    assert before == [1] and told[0] == ("opening models", 0, 1)
    steps = [count for what, count, total in told if what == "reading the text" and total == 1200]
    assert steps == sorted(steps) and steps[-1] == 1200
    assert max(after - last for last, after in zip([0, *steps], steps)) <= 128


def test_what_progress_raises_comes_out_of_the_library(tiny_bundles: Mapping[str, Path]) -> None:
    def stop(_done: int) -> None:
        raise KeyboardInterrupt

    with hostlib.SimModel(tiny_bundles["w8a8"] / "model.sim.gguf") as model:
        with pytest.raises(KeyboardInterrupt):
            model.logits([1, 2, 3], progress=stop)
        counts: list[int] = []
        assert (model.logits([1, 2, 3], chunk=2, progress=counts.append) == model.logits([1, 2, 3])).all()
        assert counts == [2, 3]
