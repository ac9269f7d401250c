"""A synthetic checkpoint in the shape of Llama 3.2 3B: bf16 safetensors in shards, 6.4 GB, written in a minute.

`python -m tests.bench.make_checkpoint FOLDER` writes the Hugging Face folder, `--gguf FILE` the same tensors as an F16
GGUF file too. The weights are slices of one random block: dear to make, cheap to repeat, and no quantiser can tell.
The tokenizer has as many tokens as a real one, since a converter has to hold it in memory.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.models import CHATML, SPECIAL, Tiny, add_vocabulary, config, gguf_name

_BLOCK = (1 << 23) + 4099  # weights; not a multiple of any row, so rows differ from each other
_SHARD = 4 << 30
_SCALING = {
    "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip


@dataclass(frozen=True)
class Size:
    """The layers are those of Llama 3.2 3B where nothing else is said."""

    layers: int
    vocab: int
    hidden: int = 3072
    heads: int = 24
    head_dim: int = 128

    @property
    def shape(self) -> Tiny:
        return Tiny(
            layers=self.layers, hidden=self.hidden, heads=self.heads, kv_heads=8, head_dim=self.head_dim,
            intermediate=8192, tied=True, rope_scaling=_SCALING, vocab_size=self.vocab,
            rope_theta=500000.0,
        )  # fmt: skip


FULL, SMALL = Size(28, 128256), Size(5, 32768)


class Weights:
    """Tensor after tensor out of one block of normal random numbers, as bf16 bits."""

    def __init__(self) -> None:
        values = np.random.default_rng(0).standard_normal(_BLOCK, np.float32) * np.float32(0.02)
        self.block: npt.NDArray[np.uint16] = (values.view(np.uint32) >> 16).astype(np.uint16)
        self._at = 0

    def pieces(self, n: int) -> Iterator[npt.NDArray[np.uint16]]:
        while n:
            piece = self.block[self._at : self._at + n]
            self._at = (self._at + len(piece)) % _BLOCK
            n -= len(piece)
            yield piece


def shards(shapes: dict[str, tuple[int, ...]]) -> list[dict[str, tuple[int, ...]]]:
    found: list[dict[str, tuple[int, ...]]] = [{}]
    size = 0
    for name, shape in shapes.items():
        nbytes = 2 * int(np.prod(shape))
        if size + nbytes > _SHARD and found[-1]:
            found.append({})
            size = 0
        found[-1][name] = shape
        size += nbytes
    return found


def make(folder: Path, size: Size) -> Path:
    """The Hugging Face folder; returns it."""
    folder.mkdir(parents=True, exist_ok=True)
    settings = config(size.shape, "bf16") | {"max_position_embeddings": 131072}
    (folder / "config.json").write_text(json.dumps(settings, indent=2))
    write_tokenizer(folder, size.vocab)
    weights, index = Weights(), {}
    parts = shards(size.shape.shapes())
    for number, part in enumerate(parts, 1):
        name = f"model-{number:05}-of-{len(parts):05}.safetensors"
        write_shard(folder / name, part, weights)
        index.update(dict.fromkeys(part, name))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
    return folder


def write_shard(path: Path, shapes: dict[str, tuple[int, ...]], weights: Weights) -> None:
    header: dict[str, Any] = {}
    at = 0
    for name, shape in shapes.items():
        end = at + 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for shape in shapes.values():
            for piece in weights.pieces(int(np.prod(shape))):
                file.write(piece.data)


def write_tokenizer(folder: Path, vocab_size: int) -> None:
    """A ByteLevel BPE whose tokens are the bytes, their pairs and triples, with the merges that make them."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = list(islice(product(letters, letters), vocab_size - len(SPECIAL) - len(letters)))
    left = vocab_size - len(SPECIAL) - len(letters) - len(pairs)
    triples = list(islice(product(letters, letters, letters), left))
    merges = [*pairs, *((a + b, c) for a, b, c in triples), *((a, b + c) for a, b, c in triples)]
    texts = [*SPECIAL, *letters, *map("".join, pairs), *map("".join, triples)]
    tokenizer = Tokenizer(models.BPE({text: i for i, text in enumerate(texts)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in SPECIAL])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"bos_token": SPECIAL[1], "eos_token": SPECIAL[2], "chat_template": CHATML}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def make_gguf(path: Path, size: Size) -> Path:
    """The same tensors as F16 (vectors F32), as llama.cpp's converter lays a file out, with a tokenizer of a few words
    and no scaling of RoPE; returns it."""
    import gguf

    shape, kinds = size.shape, gguf.GGMLQuantizationType
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(shape.layers)
    writer.add_context_length(131072)
    writer.add_embedding_length(shape.hidden)
    writer.add_feed_forward_length(shape.intermediate)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_layer_norm_rms_eps(shape.norm_eps)
    writer.add_vocab_size(shape.vocab_size)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    add_vocabulary(writer, path.parent, shape.vocab_size)
    shapes = shape.shapes()
    for name, sides in shapes.items():
        matrix = len(sides) == 2
        kind, nbytes = (kinds.F16, 2) if matrix else (kinds.F32, 4)
        writer.add_tensor_info(gguf_name(name), sides, np.dtype(np.float16), nbytes * int(np.prod(sides)), kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    weights = Weights()
    for sides in shapes.values():
        pieces = [
            (piece.astype(np.uint32) << 16).view(np.float32).astype(np.float16 if len(sides) == 2 else np.float32)
            for piece in weights.pieces(int(np.prod(sides)))
        ]
        writer.write_tensor_data(np.concatenate(pieces))
    writer.close()
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--small", action="store_true", help="5 layers and 32,768 tokens: 1.2 GB")
    parser.add_argument("--gguf", type=Path, help="write the same tensors as F16 into this file, too")
    options = parser.parse_args()
    size = SMALL if options.small else FULL
    make(options.folder, size)
    if options.gguf:
        make_gguf(options.gguf, size)


if __name__ == "__main__":
    main()
