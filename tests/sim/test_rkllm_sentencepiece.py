"""What a SentencePiece-style vocabulary changes about a run: BOS, and the space that its first piece begins with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from rk3588.hostlib import SimModel
from tests import models, smollm2
from tests.rkllm_driver import Driver
from tests.tokenizers_reference import sentencepiece

GREEDY = ("set:top_k=1", "set:repeat_penalty=1", "set:max_new_tokens=4")
BOS = 1


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, family = tmp_path_factory.mktemp("sentencepiece"), sentencepiece()
    size = family.reference.get_vocab_size()
    source = models.tiny_llama(folder / "source", vocab_size=size, hidden=32, intermediate=32)
    family.reference.save(str(source / "tokenizer.json"))
    settings = source / "tokenizer_config.json"
    settings.write_text(json.dumps({**json.loads(settings.read_text()), "add_bos_token": True}))
    smollm2.convert(source, folder, ["w8a8"], name="sp")
    return folder / "sp-rk3588-w8a8" / "model.sim.gguf"


@pytest.fixture(scope="module")
def oracle(model: Path) -> Iterator[SimModel]:
    with SimModel(model, threads=1) as opened:
        yield opened


@pytest.mark.parametrize("prompt", ["the", "<s>the"])
def test_bos_comes_first_and_once(driver: Driver, model: Path, oracle: SimModel, prompt: str) -> None:
    assert oracle.info.add_bos and oracle.info.bos_id == BOS
    done = driver(*GREEDY, f"init:{model}", f"prompt:{prompt}", "run")
    ids = [BOS, *oracle.tokenise(prompt.removeprefix("<s>"))] if prompt == "the" else oracle.tokenise(prompt)
    assert ids.count(BOS) == 1 == ids[0]
    assert done.tokens()[0] == int(np.argmax(oracle.logits(ids)[-1]))


def test_the_first_space_of_an_answer_is_dropped(driver: Driver, model: Path, oracle: SimModel) -> None:
    """The presence penalty of -1000 repeats the prompt's one token."""
    (the,) = oracle.tokenise("the")
    done = driver(*GREEDY, "set:presence_penalty=-1000", f"init:{model}", f"tokens:{the}", "run", "run")
    assert done.tokens() == [the] * 4
    assert done.text(1) == done.text(2) == b"the the the the" == oracle.detokenise([the] * 4)


def test_the_stream_is_the_decoded_answer(driver: Driver, model: Path, oracle: SimModel) -> None:
    runs = 12
    hot = ["set:temperature=5", "set:top_k=0", "set:top_p=1", "set:max_new_tokens=12", f"init:{model}"]
    done = driver(*hot, "prompt:the", *["run"] * runs, env={"RKSIM_SEED": "4"})
    for run in range(1, runs + 1):
        whole = oracle.detokenise(done.tokens(run), skip_special=True)
        # Bytes of a character that the limit cut off are held back; U+0000 ends a C string.
        assert b"\0" in whole or (whole.startswith(done.text(run)) and len(whole) - len(done.text(run)) <= 3)
    assert sum(map(len, map(done.tokens, range(1, runs + 1)))) > runs
