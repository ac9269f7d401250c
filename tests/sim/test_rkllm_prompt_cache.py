"""Prompt caches: saved by a run, loaded by another process, and never seen in an answer."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from tests.rkllm_driver import ERROR, FINISH, Driver, Outcome
from tests.sim.test_rkllm_lora import adapters as adapters
from tests.sim.test_rkllm_lora import load as load_lora
from tests.sim.test_rkllm_refusals import errors

GREEDY = ("set:top_k=1", "set:repeat_penalty=1", "set:max_new_tokens=6")
IDS = [(11 + 37 * i + 3 * i * i) % 384 for i in range(150)]  # more than a chunk of the prefill


@pytest.fixture(scope="module")
def model(tiny_bundles: Mapping[str, Path]) -> Path:
    return tiny_bundles["w8a8"] / "model.sim.gguf"


def tokens(ids: list[int]) -> str:
    return "tokens:" + ",".join(map(str, ids))


def save(path: Path, ids: list[int]) -> list[str]:
    return [f"cache:{path}", "save_cache:1", tokens(ids), "run", "save_cache:0"]


def used(done: Outcome) -> list[tuple[int, int]]:
    """Of each run with a cache: the tokens it knew, and those of its prompt."""
    return [(int(a), int(b)) for a, b in re.findall(r"I rksim: prompt cache: (\d+) of (\d+) tokens", done.log)]


@pytest.mark.parametrize("dtype", ["w8a8", "w8a8_g128", "fp16", "fp32"])
@pytest.mark.parametrize("act_scale", ["token", "tile64", "group"])
def test_no_bit_depends_on_it(
    driver: Driver, tiny_bundles: Mapping[str, Path], tmp_path: Path, dtype: str, act_scale: str
) -> None:
    """The keys and values after a prompt that a cache began are those of the prompt alone, and so is the answer."""
    init, env = f"init:{tiny_bundles[dtype] / 'model.sim.gguf'}", {"RKSIM_ACT_SCALE": act_scale}
    first, alone, again = (tmp_path / name for name in ("first", "alone", "again"))
    other = [*IDS[:100], 7, *IDS[101:]]
    plain = driver(*GREEDY, init, *save(first, IDS), *save(alone, other), env=env)
    done = driver(*GREEDY, init, f"cache:{first}", "load_prompt_cache", *save(again, other), env=env)
    assert used(plain) == [] and used(done) == [(64 if act_scale == "tile64" else 100, 150)]
    assert done.tokens() == plain.tokens(2)
    assert again.read_bytes() == alone.read_bytes() != first.read_bytes()


def test_what_is_reused(driver: Driver, model: Path, tmp_path: Path) -> None:
    """The common beginning, but never the last token of the prompt; until it is released."""
    path, other = tmp_path / "cache", tmp_path / "other"
    prompts = {"same": IDS[:20], "longer": IDS[:30], "shorter": IDS[:9], "another end": [*IDS[:12], 1, 2],
               "nothing": [3, 4], "one token": IDS[:1]}  # fmt: skip
    runs = [word for ids in prompts.values() for word in (tokens(ids), "run")]
    alone = driver(*GREEDY, f"init:{model}", *runs)
    done = driver(*GREEDY, f"init:{model}", *save(path, IDS[:20]), *save(other, [3, 4, 5]),
                  f"cache:{path}", "load_prompt_cache", *runs, "release_prompt_cache", *runs[:2],
                  f"cache:{other}", "load_prompt_cache", f"cache:{path}", "load_prompt_cache",  # the last one counts
                  *runs[:2], "release_prompt_cache", "release_prompt_cache")  # fmt: skip
    assert used(done) == [(19, 20), (20, 30), (8, 9), (12, 14), (0, 2), (0, 1), (19, 20)]
    for i in range(len(prompts)):
        assert [(c.state, c.token) for c in done.calls(3 + i)] == [(c.state, c.token) for c in alone.calls(1 + i)]
    assert done.tokens(9) == done.tokens(10) == alone.tokens(1)
    assert done.returned("release_prompt_cache") == [0, 0, 0]


def test_texts_and_async_runs(driver: Driver, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "cache"
    system, question = "<|im_start|>system\nYou are a model.<|im_end|>\n", "<|im_start|>user\nHi<|im_end|>\n"
    done = driver(*GREEDY, f"init:{model}", f"prompt:{system}{question}", "run",
                  f"cache:{path}", "save_cache:1", f"prompt:{system}", "run_async", "wait", "save_cache:0",
                  "load_prompt_cache", f"prompt:{system}{question}", "run_async", "wait")  # fmt: skip
    ((known, total),) = used(done)
    assert 0 < known < total
    assert done.tokens(3) == done.tokens(1)


def rewritten(path: Path, target: Path, change: int) -> Path:
    """The cache with one byte of its values changed and its checksum right."""
    data = bytearray(path.read_bytes()[:-4])
    data[-1] ^= change
    target.write_bytes(data + struct.pack("<I", zlib.crc32(data)))
    return target


def test_it_is_really_used(driver: Driver, model: Path, tmp_path: Path) -> None:
    """Wrong values with a right checksum must show: or the runs above computed everything again."""
    path, again, spoilt = tmp_path / "cache", tmp_path / "again", tmp_path / "spoilt"
    driver(*GREEDY, f"init:{model}", *save(path, IDS[:20]))
    for change in (0, 0x40):
        cache = rewritten(path, spoilt, change)
        driver(*GREEDY, f"init:{model}", f"cache:{cache}", "load_prompt_cache", *save(again, [*IDS[:20], 5]))
        driver(*GREEDY, f"init:{model}", *save(cache, [*IDS[:20], 5]))
        assert (again.read_bytes() == cache.read_bytes()) == (change == 0)


def test_hidden_states_and_embeddings_do_without(driver: Driver, model: Path, tmp_path: Path) -> None:
    path, floats = tmp_path / "cache", tmp_path / "floats"
    floats.write_bytes(np.ones(128, np.float32).tobytes())
    done = driver(
        *GREEDY,
        f"init:{model}",
        "mode:1",
        tokens(IDS[:20]),
        "run",
        "mode:0",
        *save(path, IDS[:20]),
        "load_prompt_cache",
        "mode:1",
        tokens(IDS[:20]),
        "run",
        "mode:0",
        f"embed:2,{floats}",
        "run",
    )
    assert used(done) == []  # every token's state is wanted; embeddings have no tokens
    np.testing.assert_array_equal(done.hidden(3), done.hidden(1))
    assert done.states(4)[-1] == FINISH


def test_each_adapter_has_its_own(driver: Driver, model: Path, tmp_path: Path, adapters: Mapping[str, Path]) -> None:
    path, loaded = tmp_path / "cache", [*load_lora(adapters["one"], "a"), *load_lora(adapters["one"], "half", 0.5)]
    run = [tokens(IDS[:20]), "run"]
    done = driver(
        *GREEDY,
        f"init:{model}",
        *loaded,
        "lora:a",
        *save(path, IDS[:20]),
        "load_prompt_cache",
        *run,
        "lora:half",
        *run,
        "no_lora",
        *run,
        "release_prompt_cache",
        "lora:half",
        *run,
        "no_lora",
        *run,
    )
    assert used(done) == [(19, 20)]
    assert done.log.count("I rksim: the prompt cache is not used: it was saved with another LoRA") == 2
    assert done.tokens(2) == done.tokens(1)
    assert (done.tokens(3), done.tokens(4)) == (done.tokens(5), done.tokens(6))
    assert len({tuple(done.tokens(n)) for n in (1, 3, 4)}) == 3


def bad_files(good: Path, foreign: Path, folder: Path) -> Mapping[str, tuple[Path, str]]:
    whole = good.read_bytes()
    found = {
        "missing": (folder / "missing", "cannot open .*missing: No such file"),
        "folder": (folder, "is not a prompt cache: not a file"),
        "other model": (foreign, "was saved with another model"),
    }
    damaged = {
        "empty": (b"", "is not a prompt cache of this runtime"),
        "text": (b"hello" * 100, "is not a prompt cache of this runtime"),
        "cut": (whole[:-1], "is damaged: save the prompt cache again"),
        "longer": (whole + b"\0", "is damaged"),
        "a bit": (whole[:90] + bytes([whole[90] ^ 1]) + whole[91:], "is damaged"),
    }
    for name, (data, said) in damaged.items():
        (folder / name).write_bytes(data)
        found[name] = (folder / name, said)
    # A right checksum does not make the counts right.
    for name, at in {"tokens": 20, "bytes": 24}.items():
        body = bytearray(whole[:-4])
        body[at : at + 4] = b"\xff\xff\xff\x7f"
        (folder / name).write_bytes(body + struct.pack("<I", zlib.crc32(body)))
        found[name] = (folder / name, "is damaged")
    return found


def test_files_that_are_refused(driver: Driver, model: Path, tiny_bundles: Mapping[str, Path], tmp_path: Path) -> None:
    """With one line; and the cache that was loaded before still is."""
    good, foreign = tmp_path / "good", tmp_path / "foreign"
    driver(*GREEDY, f"init:{tiny_bundles['fp16'] / 'model.sim.gguf'}", *save(foreign, IDS[:20]))
    driver(*GREEDY, f"init:{model}", *save(good, IDS[:20]))
    files = bad_files(good, foreign, tmp_path)
    loads = [word for path, _ in files.values() for word in (f"cache:{path}", "load_prompt_cache")]
    done = driver(*GREEDY, f"init:{model}", f"cache:{good}", "load_prompt_cache", *loads, "cache",
                  "load_prompt_cache", tokens(IDS[:20]), "run")  # fmt: skip
    assert done.returned("load_prompt_cache") == [0] + [-1] * (len(files) + 1)
    *lines, null = errors(done.log)
    for (name, (path, said)), line in zip(files.items(), lines, strict=True):
        assert line.startswith("rkllm_load_prompt_cache: ") and str(path) in line and re.search(said, line), name
    assert null == "rkllm_load_prompt_cache: prompt_cache_path is NULL"
    assert used(done) == [(19, 20)]
    done = driver(f"init:{model}", f"cache:{good}", "load_prompt_cache", env={"RKSIM_ACT_SCALE": "tile64"})
    assert "was saved with another RKSIM_ACT_SCALE" in errors(done.log)[0]


def test_a_cache_of_no_tokens_knows_nothing(driver: Driver, model: Path, tmp_path: Path) -> None:
    """No run saves one, but its checksum may be right."""
    good, none = tmp_path / "good", tmp_path / "none"
    driver(*GREEDY, f"init:{model}", *save(good, IDS[:20]))
    header = good.read_bytes()[:20] + bytes(12)
    none.write_bytes(header + struct.pack("<I", zlib.crc32(header)))
    done = driver(*GREEDY, f"init:{model}", tokens(IDS[:5]), "run", f"cache:{none}", "load_prompt_cache", "run")
    assert done.returned("load_prompt_cache") == [0] and used(done) == [(0, 5)]
    assert done.tokens(2) == done.tokens(1) != []


def test_what_cannot_be_saved(driver: Driver, model: Path, tmp_path: Path) -> None:
    floats = tmp_path / "floats"
    floats.write_bytes(np.ones(128, np.float32).tobytes())
    done = driver(*GREEDY, f"init:{model}", "save_cache:1", tokens([5]), "cache:", "run", f"cache:{tmp_path}/c",
                  f"embed:2,{floats}", "run", f"cache:{tmp_path}/no/c", tokens([5]), "run", f"cache:{tmp_path}", "run",
                  "save_cache:0", "run")  # fmt: skip
    assert done.returned("run") == [-1] * 4 + [0]
    lines = errors(done.log)
    assert lines[:2] == [
        "rkllm_run: prompt_cache_path is empty",
        "rkllm_run: a prompt of embeddings has no tokens to find it by: it cannot be saved",
    ]
    assert lines[2] == f"error: cannot write the prompt cache {tmp_path}/no/c: No such file or directory"
    assert lines[3] == f"error: cannot write the prompt cache {tmp_path}: Is a directory"
    assert [done.states(n) for n in range(1, 5)] == [[], [], [ERROR], [ERROR]] and done.states(5)[-1] == FINISH
    assert [path.name for path in tmp_path.iterdir()] == ["floats"]
    assert not list(tmp_path.parent.glob(f"{tmp_path.name}.*"))


def test_a_run_that_is_under_way_keeps_its_cache(driver: Driver, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "cache"
    driver(*GREEDY, f"init:{model}", *save(path, IDS[:20]))
    for call in ("load_prompt_cache", "release_prompt_cache"):
        done = driver(*GREEDY, f"init:{model}", f"cache:{path}", "load_prompt_cache", "at:0", f"do:{call}",
                      tokens(IDS[:20]), "run", "at:-1", "run")  # fmt: skip
        assert done.returned(call)[-1] == -1
        assert errors(done.log) == [f"rkllm_{call}: a run is under way: the prompt cache belongs to it"]
        assert used(done) == [(19, 20)] * 2 and done.tokens(1) == done.tokens(2)
