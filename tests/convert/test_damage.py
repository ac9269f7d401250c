"""A damaged artifact or manifest is an error or the same answer: never a crash, a hang or a huge allocation."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from rk3588 import bundle
from rk3588.errors import BundleError
from rkconvert.adapters import in_bundle, lora
from rkconvert.sources.opening import open_source
from tests import artifacts, loras, models
from tests.sim.test_numerics_features import CASES

DTYPE = "w8a8_g128"
ARTIFACTS, MANIFESTS, FEATURED = 10_000, 10_000, 600

# In a process of its own, with an address space of 2 GiB: what crashes or asks for too much ends it.
ATTACK = """
import os, random, resource, sys, zlib
from rk3588.errors import SimError
from rk3588.hostlib import SimModel

path, work, count, header, forged, *adapter = sys.argv[1:]
victim = adapter[0] if adapter else path
whole = open(victim, "rb").read()
ids = [1, 5, 9]
with SimModel(path, threads=1) as base:
    answer = base.logits(ids).tobytes()
    if "LD_PRELOAD" not in os.environ:  # a sanitiser reserves terabytes
        resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
    random.seed(1)
    refused = same = 0
    for i in range(int(count)):
        data = bytearray(whole)
        if i % 4 == 3:
            del data[random.randrange(len(data)):]
        else:
            # Three of four flips hit the header: it is what a reader takes decisions from.
            end = len(data) if i % 4 == 0 else min(len(data), int(header))
            for _ in range(random.choice((1, 1, 1, 2, 8))):
                bit = random.randrange(end * 8)
                data[bit // 8] ^= 1 << bit % 8
        if forged == "1" and len(data) == len(whole):
            at = whole.index(b"rksim.header_crc32") + 22
            data[at : at + 4] = bytes(4)
            data[at : at + 4] = zlib.crc32(data[: int(header)]).to_bytes(4, "little")
        with open(work, "wb") as file:
            file.write(data)
        try:
            if adapter:
                base.use_lora(work)
                base.logits(ids)
            else:
                with SimModel(work, threads=1) as model:
                    assert model.logits(ids).tobytes() == answer or forged == "1", f"another answer after damage {i}"
            same += 1
        except SimError as error:
            assert str(error) and "\\n" not in str(error), error
            refused += 1
print(refused, same)
"""


def attack(model: Path, work: Path, count: int, header: int, *adapter: Path, forged: bool = False) -> int:
    """How many of ``count`` damaged files are refused; the others load and run. ``forged``: the first ``header`` bytes
    are all that precedes the tensors' data, and their checksum is made to fit."""
    command = [sys.executable, "-c", ATTACK, *map(str, (model, work, count, header, int(forged), *adapter))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    refused, same = map(int, done.stdout.split())
    assert refused + same == count
    return refused


def test_a_damaged_artifact_never_answers_otherwise(tiny_bundles: Mapping[str, Path], tmp_path: Path) -> None:
    model = bundle.read(tiny_bundles[DTYPE]).sim_model
    assert model
    refused = attack(model, tmp_path / "damaged.gguf", ARTIFACTS, 1 << 14)
    assert refused > 0.99 * ARTIFACTS  # the checksums see nearly all of it; two flips may undo each other


@pytest.mark.parametrize("name", ["all", "all in parallel"])
def test_a_damaged_artifact_with_features_never_answers_otherwise(name: str, tmp_path: Path) -> None:
    model = CASES[name].write(tmp_path / "whole.gguf", DTYPE)
    header = artifacts.header_bytes(model, artifacts.stored(CASES[name], DTYPE))
    refused = attack(model, tmp_path / "damaged.gguf", FEATURED, header)
    assert refused > 0.99 * FEATURED


def test_headers_whose_checksums_are_right_are_refused_or_run(tmp_path: Path) -> None:
    """As somebody would change them who means harm: any bit, and the checksum of the header made to fit."""
    model = CASES["all"].write(tmp_path / "whole.gguf", DTYPE)
    stored = artifacts.stored(CASES["all"], DTYPE)
    done = attack(model, tmp_path / "damaged.gguf", FEATURED, artifacts.header_bytes(model, stored), forged=True)
    assert FEATURED // 4 < done < FEATURED


def test_a_damaged_adapter_is_refused_or_runs(tiny_bundles: Mapping[str, Path], tmp_path: Path) -> None:
    """The format has no checksums, so a number may have changed; nothing else may."""
    source = open_source(models.tiny_llama(tmp_path / "base"))
    option = lora.LoraOption(loras.peft_lora(tmp_path / "a", models.Tiny(), rank=1, targets=["q_proj"]), "a", 1.0)
    in_bundle.write_gguf(lora.read(option, source), source.config, tmp_path / "a.gguf")
    model = bundle.read(tiny_bundles[DTYPE]).sim_model
    assert model
    header = (tmp_path / "a.gguf").stat().st_size - 1024  # two layers of 64 + 64 numbers follow
    refused = attack(model, tmp_path / "damaged.gguf", ARTIFACTS, header, tmp_path / "a.gguf")
    assert ARTIFACTS // 2 < refused < ARTIFACTS


def test_a_damaged_manifest_is_refused_in_one_sentence(tiny_bundles: Mapping[str, Path], tmp_path: Path) -> None:
    chance = random.Random(1)
    manifest = json.loads((tiny_bundles[DTYPE] / bundle.MANIFEST).read_bytes())
    adapter = {"name": "a", "scale": 1.0, "artifacts": {"sim": "README.md"}}
    whole = json.dumps({**manifest, "lora": {"mode": "adapter", "adapters": [adapter]}}, indent=2).encode()
    folder = tmp_path / "damaged"
    folder.mkdir()
    for entry in json.loads(whole)["files"]:
        (folder / entry["path"]).parent.mkdir(parents=True, exist_ok=True)
        (folder / entry["path"]).symlink_to(tiny_bundles[DTYPE].resolve() / entry["path"])
    refused = 0
    for i in range(MANIFESTS):
        data = bytearray(whole)
        if i % 4 == 3:
            del data[chance.randrange(len(data)) :]
        else:
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        (folder / bundle.MANIFEST).write_bytes(data)
        try:
            found = bundle.read(folder)
        except BundleError as error:
            assert "\n" not in str(error)
            refused += 1
        else:
            # The damage was in a word that names nothing here, or in the word "sim" itself: no model, then.
            assert found.sim_model is None or found.sim_model.parent == folder
            assert all(one.sim is None or one.sim.parent == folder for one in found.loras.values())
    assert refused > MANIFESTS // 4


@pytest.mark.parametrize("count", [2**63, 2**64 - 1, 2**40])
def test_absurd_counts_in_the_header_are_refused(tiny_bundles: Mapping[str, Path], tmp_path: Path, count: int) -> None:
    from rk3588.errors import SimError
    from rk3588.hostlib import SimModel

    model = bundle.read(tiny_bundles[DTYPE]).sim_model
    assert model
    for at in (8, 16):  # how many tensors, how many keys
        data = bytearray(model.read_bytes())
        data[at : at + 8] = count.to_bytes(8, "little")
        (tmp_path / "absurd.gguf").write_bytes(data)
        with pytest.raises(SimError):
            SimModel(tmp_path / "absurd.gguf", threads=1)
