"""What names of published ``.rkllm`` files claim: the names are those of files and repositories on the hub."""

from __future__ import annotations

from typing import Any

import pytest

from rk3588 import quant, rkllm_file
from rk3588.shape import Shape
from rkconvert.adoption import claims
from rkconvert.adoption.claims import Claim
from rkconvert.sources import hub

FILES: dict[str, tuple[str, dict[str, Any]]] = {
    "Qwen2.5-1.5B-Instruct-rk3588-w8a8-opt-1-hybrid-ratio-0.0.rkllm": (
        "Qwen2.5-1.5B-Instruct",
        {"platform": "rk3588", "dtype": "w8a8", "optimization_level": 1, "hybrid_rate": 0.0},
    ),
    "TinyLlama-1.1B-Chat-v1.0-rk3588-w8a8_g512-opt-0-hybrid-ratio-0.5.rkllm": (
        "TinyLlama-1.1B-Chat-v1.0",
        {"platform": "rk3588", "dtype": "w8a8_g512", "optimization_level": 0, "hybrid_rate": 0.5},
    ),
    "dolphin-2.9.2-qwen2-7b-rk3588-w8a8-opt-0-hybrid-ratio-0.0.rkllm": (
        "dolphin-2.9.2-qwen2-7b",
        {"platform": "rk3588", "dtype": "w8a8", "optimization_level": 0, "hybrid_rate": 0.0},
    ),
    "Llama-2-7B-Chat-rk3588-w4a16_g64-opt-0-hybrid-ratio-0.4.rkllm": (
        "Llama-2-7B-Chat",
        {"platform": "rk3588", "dtype": "w4a16_g64", "optimization_level": 0, "hybrid_rate": 0.4},
    ),
    "deepseek-coder-1.3b-instruct_w8a8_g128_rk3588.rkllm": (
        "deepseek-coder-1.3b-instruct",
        {"platform": "rk3588", "dtype": "w8a8_g128"},
    ),
    "Qwen3-4B-w8a8-rk3588.rkllm": ("Qwen3-4B", {"platform": "rk3588", "dtype": "w8a8"}),
    "DeepSeek-R1-Distill-Qwen-1.5B_W8A8_RK3588.rkllm": (
        "DeepSeek-R1-Distill-Qwen-1.5B",
        {"platform": "rk3588", "dtype": "w8a8"},
    ),
    "Qwen2.5-0.5B-Instruct-rk3588-1.1.4.rkllm": ("Qwen2.5-0.5B-Instruct", {"platform": "rk3588", "toolkit": "1.1.4"}),
    "tinyllama-v1.0-1.1B-rk3588.rkllm": ("tinyllama-v1.0-1.1B", {"platform": "rk3588"}),
    "m-rk3576-w8a8.rkllm": ("m", {"platform": "rk3576", "dtype": "w8a8"}),
    "M-rk3588-w8a8_g256-opt0-hybrid0.25.rkllm": (  # as rkconvert calls its own
        "M",
        {"platform": "rk3588", "dtype": "w8a8_g256", "optimization_level": 0, "hybrid_rate": 0.25},
    ),
    "Qwen3-1.7B-rk3588-w8a8-ctx16384.rkllm": (
        "Qwen3-1.7B",
        {"platform": "rk3588", "dtype": "w8a8", "max_context": 16384},
    ),
    "Phi-3-mini-4k-instruct-1.1.x.rkllm": ("Phi-3-mini-4k-instruct-1.1.x", {}),
    "qwen.rkllm": ("qwen", {}),
    "granite-hybrid-7B-rk3588-w8a8.rkllm": ("granite-hybrid-7B", {"platform": "rk3588", "dtype": "w8a8"}),
    "opt-1.3b-rk3588.rkllm": ("opt-1.3b", {"platform": "rk3588"}),
    "m-rk3588-hybrid-ratio-50.rkllm": ("m", {"platform": "rk3588"}),
    "m-rk3588-hybrid-ratio-1.0.rkllm": ("m", {"platform": "rk3588", "hybrid_rate": 1.0}),
}

PLACES = {
    "c01zaut/dolphin-2.9.2-qwen2-7b-rk3588-1.1.1": "1.1.1",
    "c01zaut/gemma-2-2b-it-RK3588-1.1.4": "1.1.4",
    "punchnox/Tinnyllama-1.1B-rk3588-rkllm-1.1.4": "1.1.4",
    "GatekeeperZA/Qwen3-4B-RKLLM-v1.2.3": "1.2.3",
    "dulimov/Qwen3-4B-rk3588-1.2.1-unsloth-16k": "1.2.1",
    "w8a8_g512-toolkitv1.1.1": "1.1.1",
    "user/m-rk3588-4.51.3-1.2.1": "1.2.1",
    "user/m-rk3588-1.4.0": "1.4.0",
    "user/dolphin-2.9.2-qwen2-7b": None,
    "user/Llama-3.1-8B": None,
    "user/model-1.1.1.1": None,
}


@pytest.mark.parametrize("name", FILES)
def test_names_of_files(name: str) -> None:
    model, found = FILES[name]
    assert claims.model_name(name) == model
    assert {key: claim.value for key, claim in claims.of_name(name, "it").items()} == found


@pytest.mark.parametrize("name", PLACES)
def test_the_toolkit_in_names_of_repositories_and_revisions(name: str) -> None:
    claim = claims.of_name(name, "it").get("toolkit")
    assert (claim and claim.value) == PLACES[name]


def test_the_first_is_believed_and_what_contradicts_it_is_noted() -> None:
    text = {"toolkit": Claim("1.2.1", "the text")}
    name = {"toolkit": Claim("1.1.4", "the name"), "dtype": Claim("w8a8", "a")}
    found, notes = claims.settle([text, name, {"dtype": Claim("w8a8", "b")}])
    assert found == {"toolkit": text["toolkit"], "dtype": name["dtype"]}
    assert notes == ["toolkit: 1.2.1 (by the text) is believed, and not 1.1.4 (by the name)"]


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("hf:u/r:f.rkllm@v1", "hf:u/r:f.rkllm@v1"),
        ("https://huggingface.co/u/r", "hf:u/r"),
        ("https://huggingface.co/u/r/tree/main", "hf:u/r@main"),
        ("https://huggingface.co/u/r/blob/main/a%20b/f.rkllm", "hf:u/r:a b/f.rkllm@main"),
        ("https://huggingface.co/u/r.rkllm/resolve/v1/f.rkllm?download=true", "hf:u/r.rkllm:f.rkllm@v1"),
        ("https://hf-mirror.com/u/r/resolve/main/f.rkllm", "hf:u/r:f.rkllm@main"),
        ("https://example.com/u/r/resolve/main/f.rkllm", None),
        ("u/r", None),
        ("folder/f.rkllm", None),
    ],
)
def test_names_on_the_hub(given: str, name: str | None) -> None:
    """An address is read for its names; which hub is asked, HF_ENDPOINT says."""
    assert hub.hub_name(given) == name


@pytest.mark.parametrize(
    ("tail", "version"),
    [
        (b"\0\1\2rkllm-toolkit version: 1.3.1", "1.3.1"),
        (b"rkllm-toolkit version: 1.2.1b1\n", "1.2.1b1"),
        (b"rkllm-toolkit version: 1.3.1\0\0", "1.3.1"),
        (b"rkllm-toolkit version: " + b"1" * 40, ""),
        (b"rkllm-toolkit version: 1.2.3x", ""),
        (b"\xff" * 64, ""),
        (b"", ""),
    ],
)
def test_the_text_at_the_end(tail: bytes, version: str) -> None:
    assert rkllm_file.toolkit_version(tail) == version


# Bytes as the hub shows them, in GB: (layers, hidden, intermediate, heads, kv_heads, head_dim, vocab).
PUBLISHED = [
    ((16, 2048, 8192, 32, 8, 64, 128256), "w8a8", 1.78),
    ((16, 2048, 8192, 32, 8, 64, 128256), "w8a8_g128", 1.88),
    ((28, 1536, 8960, 12, 2, 128, 151936), "w8a8", 2.04),
    ((28, 1536, 8960, 12, 2, 128, 151936), "w8a8_g128", 2.15),
    ((26, 2304, 9216, 8, 4, 256, 256000), "w8a8", 3.82),
    ((26, 2304, 9216, 8, 4, 256, 256000), "w8a8_g128", 4.01),
    ((32, 4096, 11008, 32, 32, 128, 125696), "w8a8", 8.05),
    ((32, 4096, 11008, 32, 32, 128, 125696), "w8a8_g128", 8.54),
    ((24, 2048, 5504, 16, 16, 128, 32256), "w8a8", 1.43),
    ((24, 2048, 5504, 16, 16, 128, 32256), "w8a8_g128", 1.53),
    ((24, 2048, 5504, 16, 16, 128, 32256), "w8a8_g128", 1.59),
    ((32, 4096, 11008, 32, 32, 128, 32256), "w8a8_g128", 7.52),
    ((28, 3072, 8192, 24, 8, 128, 128256), "w8a8_g512", 4.08),
    ((22, 2048, 5632, 32, 4, 64, 32000), "w8a8", 1.17),
    ((28, 4096, 13696, 32, 2, 128, 65024), "w8a8", 6.52),
    ((18, 640, 2048, 4, 1, 256, 262144), "w8a8_g128", 0.629),
    ((40, 5120, 13824, 40, 40, 128, 32000), "w8a8", 13.2),
]


@pytest.mark.parametrize(("sizes", "dtype", "gigabytes"), PUBLISHED)
def test_published_files_have_the_size_that_is_expected(
    sizes: tuple[int, ...], dtype: str, gigabytes: float
) -> None:
    layers, hidden, intermediate, heads, kv_heads, head_dim, vocab = sizes
    shape = Shape("m", layers, hidden, intermediate, heads, kv_heads, head_dim, vocab, tied=True)
    expected = rkllm_file.expected_size(shape, quant.SCHEMES[dtype])
    assert 0.99 <= gigabytes * 1e9 / expected <= 1.06
