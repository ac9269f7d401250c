"""Our headers of RKLLM against the layouts that were published for Rockchip's, and against the committed tables."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.rkllm_headers import HEADERS, committed, table

C11, CXX17 = ("cc", "-x", "c", "-std=c11", "-pedantic"), ("c++", "-x", "c++", "-std=c++17")
# As published, struct by struct: what a compiler makes of Rockchip's own headers, in the order of HEADERS.
SIZES: dict[str, tuple[int | None, int | None, int | None, int | None]] = {
    "RKLLMParam": (200, 208, 208, 184), "RKLLMExtendParam": (116, 120, 120, 120), "RKLLMInput": (32, 32, 64, 208),
    "RKLLMMultiModelInput": (24, 24, None, None), "RKLLMMultiModalInput": (None, None, 48, 192),
    "RKLLMInferParam": (24, 32, 32, 40), "RKLLMResult": (32, 48, 72, 72), "RKLLMResultLogits": (None, 16, 16, 16),
    "RKLLMPerfStat": (None, None, 20, 20), "RKLLMCrossAttnParam": (None, None, 40, 40),
    "RKLLMSamplingParam": (None, None, None, 36), "RKLLMCallback": (None, None, None, 48),
    "RKLLMLoraAdapter": (24,) * 4, "RKLLMEmbedInput": (16,) * 4, "RKLLMTokenInput": (16,) * 4,
    "RKLLMLoraParam": (8,) * 4, "RKLLMPromptCacheParam": (16,) * 4, "RKLLMResultLastHiddenLayer": (16,) * 4,
}  # fmt: skip
# The fields that moved, or came: struct.field and its offset in each.
OFFSETS: dict[str, tuple[int | None, int | None, int | None, int | None]] = {
    "RKLLMParam.top_k": (16,) * 4, "RKLLMParam.n_keep": (None, 20, 20, 20), "RKLLMParam.top_p": (20, 24, 24, 24),
    "RKLLMParam.mirostat_eta": (48, 52, 52, 52), "RKLLMParam.skip_special_token": (52, 56, 56, 56),
    "RKLLMParam.ignore_eos_token": (None, None, None, 57), "RKLLMParam.is_async": (53, 57, 57, 58),
    "RKLLMParam.img_start": (56, 64, 64, None), "RKLLMParam.extend_param": (80, 88, 88, 60),
    "RKLLMExtendParam.enabled_cpus_num": (None, 5, 5, 5), "RKLLMExtendParam.enabled_cpus_mask": (None, 8, 8, 8),
    "RKLLMExtendParam.n_batch": (None, None, 12, 12), "RKLLMExtendParam.reserved": (4, 12, 14, 14),
    "RKLLMInput.role": (None, None, 0, 0), "RKLLMInput.enable_thinking": (None, None, 8, 8),
    "RKLLMInput.input_type": (0, 0, 12, 12), "RKLLMInput.token_input": (8, 8, 16, 16),
    "RKLLMInferParam.sampling_params": (None, None, None, 24), "RKLLMInferParam.keep_history": (None, 24, 24, 32),
    "RKLLMInferParam.max_new_tokens": (None, None, None, 36), "RKLLMResult.last_hidden_layer": (16,) * 4,
    "RKLLMResult.logits": (None, 32, 32, 32), "RKLLMResult.perf": (None, None, 48, 48),
    "RKLLMMultiModalInput.image_width": (None, None, 32, None),
    "RKLLMMultiModalInput.video.frame_height": (None, None, None, 136),
    "RKLLMMultiModalInput.audio.audio_content": (None, None, None, 184),
}  # fmt: skip
FUNCTIONS = {"1.1.1": 10, "1.2.0": 12, "1.2.3": 15, "1.3.1": 15}


def offset(release: str, path: str) -> int | None:
    struct, _, field = path.partition(".")
    found: dict[str, Any] = committed(release)["structs"].get(struct, {"fields": {}})["fields"].get(field, {})
    return found.get("offset")


@pytest.mark.parametrize("compiler", [C11, CXX17], ids=["c11", "c++17"])
@pytest.mark.parametrize("release", HEADERS)
def test_the_committed_table_is_what_a_compiler_makes_of_the_header(release: str, compiler: tuple[str, ...]) -> None:
    assert table(release, compiler) == committed(release), "run: python -m tests.rkllm_headers"


@pytest.mark.parametrize(("at", "release"), list(enumerate(HEADERS)))
def test_the_layout_is_the_published_one(at: int, release: str) -> None:
    structs = {name: struct["size"] for name, struct in committed(release)["structs"].items()}
    assert structs == {name: sizes[at] for name, sizes in SIZES.items() if sizes[at] is not None}
    assert {path: offset(release, path) for path in OFFSETS} == {path: offsets[at] for path, offsets in OFFSETS.items()}
    assert len(committed(release)["functions"]) == FUNCTIONS[release]
    states = {"GET_LAST_HIDDEN_LAYER": 4} if release == "1.1.1" else {}
    found = {n[10:]: v for n, v in committed(release)["enums"].items() if n.startswith("RKLLM_RUN_")}
    assert found == {"NORMAL": 0, "WAITING": 1, "FINISH": 2, "ERROR": 3, **states}


def test_programs_of_1_2_1_may_call_the_multimodal_input_as_it_was_called(tmp_path: Path) -> None:
    shutil.copy(HEADERS["1.2.3"], tmp_path)
    source = '#include "rkllm.h"\nint main(void) { RKLLMMultiModelInput in = {0}; return (int)in.n_image; }\n'
    for compiler in (C11, CXX17):
        command = [*compiler, "-Wall", "-Werror", f"-I{tmp_path}", "-", "-o", str(tmp_path / "user")]
        subprocess.run(command, input=source, text=True, check=True)
        subprocess.run([str(tmp_path / "user")], check=True)
