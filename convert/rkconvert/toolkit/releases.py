"""The releases of rkllm-toolkit: their wheels, and what each takes, so that nothing is asked of one that lacks it.

Sources: the wheels and the examples in airockchip/rknn-llm's commits of each release, its CHANGELOG, and the manuals of
1.1.1, 1.2.0 and 1.3.0. Wheels are known by the id that git has for them there, which names their content; nobody has
published more of most. Those of 1.3.1 are in no commit, so they are taken with --allow-unknown only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from rk3588.families import version

DEFAULT = "1.1.1"  # what is taken for known where none is installed: the runtime that this toolkit was written for
# Of each release, by Python: the git id of its wheel for x86-64 Linux.
WHEELS: Mapping[str, Mapping[str, str]] = {
    "1.1.0": {
        "3.8": "248c761b36e95d0e03539aa82c27e152a736d140",
    },
    "1.1.1": {
        "3.8": "5a1cd5e0a821d119724d9c74100fbaacf6fef44e",
        "3.10": "e4d5cfa26234b108a47b0e38a11db7a715858a18",
    },
    "1.1.2": {
        "3.8": "4fe572ce8b3b9de359427a061bf980a2644aa2d1",
        "3.10": "ad0525cf28d8383b0d56ea7b2ffeeba5c9c437e0",
    },
    "1.1.3": {
        "3.8": "9fd6bd2cae6044738aedeb7fa91c3fbee7dff68c",
        "3.10": "eb1d04bc6c27154e48a2c7663748cd58e57f5ab4",
    },
    "1.1.4": {
        "3.8": "bf2baafa4e2645faa538286ce0dfc53577d6cb87",
        "3.10": "d50bd00ee433e3ac572427bf4e2f81a336e6cefe",
    },
    "1.2.0": {
        "3.8": "df6fd116b9973d4b1ff06a67cb64335b3da910fc",
        "3.9": "c9b8df59635818334e46605bca466e7f1dc13ee0",
        "3.10": "954fa1e47ae7e84ce3502719c850a7295e5760e7",
        "3.11": "d212a586cb219fddbc22a3195e5072c4f44e913a",
        "3.12": "4c3a28ed0c841024ebdec7cd4fe79ca8c17e4879",
    },
    "1.2.1b1": {
        "3.8": "3927ea1cafa57f4cc787dda515f49821a8279688",
        "3.9": "daed56b9587952b52f8aea107634a633538933d5",
        "3.10": "8222e281f5110edb1b033c35832d68ae163a40ef",
        "3.11": "7602b8cc113187b53a9675e6b9bd8f32f1e42292",
        "3.12": "43f91bd32ae1758bf7f06d92e45ec59c039890b1",
    },
    "1.2.1": {
        "3.8": "2a6b8001811e413a0a40cc71dff28d22e7c82663",
        "3.9": "7b5096077f563b66268924bfbf1f2e68275c3351",
        "3.10": "6339771d231746a1fc4458dd5e83e3165eabc74e",
        "3.11": "67b807380add8c4baeda6e5f3bac0773f78ac537",
        "3.12": "d9e071ecc5b73b715ce6554bcf8851eb849dfc24",
    },
    "1.2.2": {
        "3.8": "f8e8a0d6d2f57d0a7a6385896a2e3c0107e9b991",
        "3.9": "66f1a626e0613df2082f8f4ef918756bedb7a20e",
        "3.10": "e7791e5c75a3d853e8d1b8184b7a16fd2a53b914",
        "3.11": "e2397de89b8435a8d93bc23e7e4dcca444259af9",
        "3.12": "50ad4922e96005858e26f6a8cc048dc5bf91a1ca",
    },
    "1.2.3": {
        "3.9": "adb91fa6ad5d53e9d89d8d387e1284ae4d4007d3",
        "3.10": "660103dd5f3410c74812ee199b83b27d5e50380d",
        "3.11": "0e20ab81597a110dcfaebb3958c125a8a41aee21",
        "3.12": "8fb0b8db3f380b9f2b4829b94c2d0678c2bc0703",
    },
    "1.3.0": {
        "3.9": "c5d68f1d610955e7ce740826c6247dda5124576d",
        "3.10": "2604894f6b04246b0ae1d11eeeb033f30109767b",
        "3.11": "d14b65a0cc443ea4493d9d78992e9c02e690df39",
        "3.12": "b764c705e99c3c266907cc115c1ea256a48503c1",
    },
}
UNPUBLISHED = {"1.3.1": ("3.10", "3.11", "3.12")}  # wheels of which no id is known, by Python
MD5 = {"696070d1ec134ff68fd5b03b873cd678": "3.8", "e8e37c6bf0af799f9a0187c9864b2450": "3.10"}  # published of 1.1.1's
MOST_CONTEXT, CONTEXT_STEP = 16384, 32
LOAD_DTYPES = ("float32", "float16", "bfloat16")
_RESIDUAL = re.compile(r"_r([1-9]\d?)$")  # normal_r8: what quantising lost comes back as a LoRA of rank 8
_MOST_RANK = 64


@dataclass(frozen=True)
class Release:
    """What a release takes. Of one that is not in the table, what the newest known before it took."""

    name: str

    @property
    def _at(self) -> tuple[int, ...]:
        return version(self.name)

    @property
    def known(self) -> bool:
        return self.name in WHEELS or self.name in UNPUBLISHED

    @property
    def pythons(self) -> tuple[str, ...]:
        """Those that it has wheels for; empty where that is not known."""
        return tuple(WHEELS.get(self.name, ())) or UNPUBLISHED.get(self.name, ())

    @property
    def algorithms(self) -> tuple[str, ...]:
        """Of quantized_algorithm, without ``_rN``."""
        if self._at < (1, 2):
            return ("normal", "gdq")
        return ("normal", "gdq", "grq") if self._at < (1, 3) else ("normal", "grq")

    def takes_algorithm(self, name: str) -> bool:
        rank = _RESIDUAL.search(name)
        if rank is None:
            return name in self.algorithms
        plain = name[: rank.start()]
        has = self._at >= (1, 2, 1) and self.name != "1.2.1b1"
        return has and plain in ("normal", "grq") and int(rank[1]) <= _MOST_RANK

    @property
    def takes_max_context(self) -> bool:
        return self._at >= (1, 2)

    @property
    def takes_load_options(self) -> bool:
        """``dtype``, ``custom_config`` and ``load_weight`` of load_huggingface."""
        return self._at >= (1, 2)

    @property
    def takes_gptq(self) -> bool:
        """Checkpoints of GPTQ: 4 or 8 bits, symmetric, groups of 128, 256 or 512, no act-order; to w8a8_gN."""
        return self._at >= (1, 2)


def of(text: str) -> Release:
    """The release that a package or a wheel says it is: what a build of somebody's own adds does not count."""
    return Release(text.partition("+")[0])


def is_residual(algorithm: str) -> bool:
    """Whether it writes a LoRA of what quantising lost beside the model, to be chosen when it is run."""
    return _RESIDUAL.search(algorithm) is not None
