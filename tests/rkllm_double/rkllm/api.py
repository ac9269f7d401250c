"""``rkllm.api`` as far as it is documented: arguments, order, constraints, return values, what it prints.

Standard library and Python 3.8 only, like the interpreters that the real one needs. What it exports is a text that
says so, followed by every argument it was given. RKLLM_DOUBLE chooses how a call ends: ``build:kill``, and so on for
every method and every end that ``_end`` knows. RKLLM_DOUBLE_RECORD names a file that gets a JSON line for each call.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import struct
import subprocess
import sys
import time
from typing import Any, Optional

from ._version import VERSION

BANNER = "NOT AN RKLLM MODEL: the double of rkllm-toolkit wrote this in a test; no NPU can run it\n"
PLATFORMS = {
    "rk3588": (("w8a8", "w8a8_g128", "w8a8_g256", "w8a8_g512"), 3),
    "rk3576": (("w4a16", "w4a16_g32", "w4a16_g64", "w4a16_g128", "w8a8"), 2),
}
# From which release on, each as Rockchip's lists have it.
ARCHITECTURES = {
    **dict.fromkeys((
        "LlamaForCausalLM", "Qwen2ForCausalLM", "QWenLMHeadModel", "PhiForCausalLM", "Phi3ForCausalLM", "ChatGLMModel",
        "GemmaForCausalLM", "Gemma2ForCausalLM", "InternLM2ForCausalLM", "MiniCPMForCausalLM", "MiniCPM3ForCausalLM",
        "TelechatForCausalLM",
    ), (1, 1)),
    "Gemma3ForCausalLM": (1, 2, 0), "Qwen3ForCausalLM": (1, 2, 1), "SmolLM3ForCausalLM": (1, 3, 0),
}  # fmt: skip
RELEASE = VERSION.split("+")[0]
AT = tuple(int(part) for part in re.findall(r"\d+", RELEASE)[:3])
_F32, _F16, _Q4_0 = 0, 1, 2


class _Toolkit:
    """What all releases have in common; their signatures are below."""

    def __init__(self) -> None:
        print(f"INFO: rkllm-toolkit version: {RELEASE}")
        self._model: Optional[dict[str, Any]] = None
        self._built: Optional[dict[str, Any]] = None

    def _load(self, model: str, model_lora: Optional[str], device: str, dtype: str, custom: Optional[str]) -> int:
        if not os.path.isdir(model) or not os.path.isfile(os.path.join(model, "config.json")):
            return _error(f"{model} is not a huggingface model folder")
        if device not in ("cpu", "cuda"):
            return _error(f"device {device} is not supported")
        if dtype not in ("float32", "float16", "bfloat16"):
            return _error(f"dtype {dtype} is not supported")
        if custom is not None and not os.path.isfile(custom):
            return _error(f"{custom} is not a config")
        if model_lora is not None and not os.path.isfile(os.path.join(model_lora, "adapter_config.json")):
            return _error(f"{model_lora} is not a lora adapter")
        with open(os.path.join(model, "config.json")) as file:
            config = json.load(file)
        name = (config.get("architectures") or ["?"])[0]
        if custom is None and ARCHITECTURES.get(name, (9,)) > AT:
            return _error(f"{name} is not supported yet")
        quantised = config.get("quantization_config")
        if quantised and (AT < (1, 2) or not _is_taken(quantised)):
            return _error("quantized checkpoints are not supported")
        weights = sorted(name for name in os.listdir(model) if name.endswith((".safetensors", ".bin")))
        self._model = {
            "shapes": {} if quantised else _safetensors_shapes(model),
            "files": [os.path.join(model, name) for name in weights],
            "lora": model_lora,
            "group": quantised["group_size"] if quantised else None,
        }
        _bar("Loading checkpoint shards")
        return 0

    def load_gguf(self, model: str) -> int:
        _called("load_gguf", locals())
        if not os.path.isfile(model):
            return _error(f"{model} is not a file")
        kinds = _gguf_kinds(model)
        if not kinds or not kinds <= {_F32, _F16, _Q4_0}:
            return _error("gguf: only q4_0 and f16 are supported")
        self._model = {"shapes": {}, "files": [model], "lora": None, "group": None}
        return 0

    def _build(self, given: dict[str, Any]) -> int:
        if self._model is None:
            return _error("no model is loaded")
        if given["target_platform"] not in PLATFORMS:
            return _error(f"target_platform {given['target_platform']} is not supported")
        for wrong, sentence in _problems(given):
            if wrong:
                return _error(sentence)
        dtype = given["quantized_dtype"]
        group = int(dtype.split("_g")[1]) if "_g" in dtype else 0
        if self._model["group"] is not None and self._model["group"] != group:
            return _error(f"the checkpoint has groups of {self._model['group']}, which {dtype} has not")
        for name, shape in self._model["shapes"].items():
            if group and shape[-1] % group:
                return _error(f"group size {group} does not divide {name} {shape}")
        samples = _dataset(given["dataset"])
        if samples is None:
            return _error(f"dataset {given['dataset']} is not a list of input and target")
        for stage in ("Building model", "Optimizing model", "Quantizing model"):
            _bar(stage)
        self._built = dict(given, samples=samples)
        return 0

    def _export(self, export_path: str) -> int:
        if self._model is None or self._built is None:
            return _error("export before build")
        facts = {name: value for name, value in self._built.items() if name not in ("dataset", "samples")}
        facts["model"] = {os.path.basename(f): _digest(f) for f in self._model["files"]}
        facts["dataset"] = _digest(self._built["dataset"]) if self._built["dataset"] else None
        facts["samples"] = len(self._built["samples"])
        with open(export_path, "w") as file:
            file.write(BANNER + json.dumps(facts, indent=1, sort_keys=True) + "\n")
            if AT >= (1, 3, 1):  # as reported of it
                file.write(f"rkllm-toolkit version: {RELEASE}")
        lora, residual = self._model["lora"], re.search(r"_r\d+$", facts["quantized_algorithm"])
        if lora or residual:
            told = {"lora": _digest(os.path.join(lora, "adapter_model.safetensors")) if lora else "residual"}
            with open(export_path[: -len(".rkllm")] + "_lora.rkllm", "w") as file:
                file.write(BANNER + json.dumps(told) + "\n")
        print(f"INFO: export to {export_path}")
        return 0


class _Toolkit11(_Toolkit):
    """1.1.0 to 1.1.4."""

    def load_huggingface(self, model: str, model_lora: Optional[str] = None, device: str = "cpu") -> int:
        _called("load_huggingface", locals())
        return self._load(model, model_lora, device, "float32", None)

    def build(
        self,
        do_quantization: bool = True,
        optimization_level: int = 1,
        quantized_dtype: str = "w8a8",
        quantized_algorithm: str = "normal",
        target_platform: str = "rk3588",
        num_npu_core: int = 3,
        extra_qparams: Optional[str] = None,
        dataset: Optional[str] = None,
        hybrid_rate: float = 0,
    ) -> int:
        return self._build(_called("build", locals()))

    def export_rkllm(self, export_path: str) -> int:
        _called("export_rkllm", locals())
        return self._export(export_path)


class _Toolkit12(_Toolkit):
    """1.2.0 to 1.2.3."""

    def load_huggingface(
        self,
        model: str,
        model_lora: Optional[str] = None,
        device: str = "cpu",
        dtype: str = "float32",
        custom_config: Optional[str] = None,
        load_weight: bool = True,
    ) -> int:
        _called("load_huggingface", locals())
        return self._load(model, model_lora, device, dtype, custom_config)

    def build(
        self,
        do_quantization: bool = True,
        optimization_level: int = 1,
        quantized_dtype: str = "w8a8",
        quantized_algorithm: str = "normal",
        target_platform: str = "rk3588",
        num_npu_core: int = 3,
        extra_qparams: Optional[str] = None,
        dataset: Optional[str] = None,
        hybrid_rate: float = 0,
        max_context: int = 4096,
    ) -> int:
        return self._build(_called("build", locals()))

    def export_rkllm(self, export_path: str) -> int:
        _called("export_rkllm", locals())
        return self._export(export_path)


class _Toolkit13(_Toolkit12):
    """1.3.0 and 1.3.1."""

    def export_rkllm(self, export_path: str, export_tokenizer: bool = True, export_embedding: bool = True) -> int:
        _called("export_rkllm", locals())
        return self._export(export_path)


RKLLM = _Toolkit11 if AT < (1, 2) else _Toolkit12 if AT < (1, 3) else _Toolkit13


def _problems(given: dict[str, Any]) -> list[tuple[bool, str]]:
    dtypes, cores = PLATFORMS[given["target_platform"]]
    dtype, algorithm, context = given["quantized_dtype"], given["quantized_algorithm"], given.get("max_context", 4096)
    return [
        (dtype not in dtypes, f"quantized_dtype {dtype} is not supported"),
        (given["num_npu_core"] not in range(1, cores + 1), f"num_npu_core must be 1 to {cores}"),
        (given["optimization_level"] not in (0, 1), "optimization_level must be 0 or 1"),
        (not 0 <= given["hybrid_rate"] < 1, "hybrid_rate must be in [0, 1)"),
        (not _is_algorithm(algorithm), f"unknown algorithm {algorithm}"),
        (algorithm == "gdq" and "w4" not in dtype, "gdq is for 4 bits only"),
        (
            given["extra_qparams"] is not None and not os.path.isfile(str(given["extra_qparams"])),
            "extra_qparams: no such file",
        ),
        (not given["do_quantization"], "do_quantization=False is not part of this double"),
        (context % 32 != 0 or not 0 < context <= 16384, f"max_context {context} is not supported"),
    ]


def _is_algorithm(name: str) -> bool:
    known = {1: ("normal", "gdq"), 2: ("normal", "gdq", "grq"), 3: ("normal", "grq")}[AT[1]]
    residual = re.fullmatch(r"(normal|grq)_r(\d+)", name)
    return name in known or (residual is not None and AT >= (1, 2, 1) and 1 <= int(residual[2]) <= 64)


def _is_taken(quantised: dict[str, Any]) -> bool:
    """Of GPTQ: symmetric, in groups that a w8a8_gN has, its columns in their order."""
    return (
        quantised.get("quant_method") == "gptq"
        and quantised.get("bits") in (4, 8)
        and quantised.get("group_size") in (128, 256, 512)
        and quantised.get("sym") is True
        and not quantised.get("desc_act")
    )


def _called(method: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """Record the call, then end it early if RKLLM_DOUBLE asks for that; returns what was given."""
    given = {name: value for name, value in arguments.items() if name != "self"}
    record = os.environ.get("RKLLM_DOUBLE_RECORD")
    if record:
        with open(record, "a") as file:
            file.write(json.dumps([method, given, list(sys.version_info[:2]), os.getpid()]) + "\n")
    wanted, _, end = os.environ.get("RKLLM_DOUBLE", "").partition(":")
    if wanted == method:
        _end(end)
    return given


def _end(how: str) -> None:
    if how == "kill":
        hog = bytearray(64 << 20)  # seen in the peak that is reported
        hog[::4096] = bytes(len(hog[::4096]))
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "segv":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif how == "exit":
        sys.exit(3)
    elif how == "memory":
        raise MemoryError
    elif how == "raise":
        raise RuntimeError("Error(s) in loading state_dict: size mismatch")
    elif how == "fail":
        print("ERROR: Catch exception when building RKLLM model!")
        raise _Failed
    elif how == "children":  # busy processes that nobody waits for
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        time.sleep(600)
    elif how == "hang":
        time.sleep(600)


class _Failed(Exception):
    """Turned into -1 by the method it is raised in."""


def _minus_one(method: Any) -> Any:
    def call(self: Any, *args: Any, **arguments: Any) -> int:
        try:
            return int(method(self, *args, **arguments))
        except _Failed:
            return -1

    return call


for _name in ("load_huggingface", "load_gguf", "build", "export_rkllm"):
    setattr(RKLLM, _name, _minus_one(getattr(RKLLM, _name)))


def _error(sentence: str) -> int:
    print(f"ERROR: {sentence}")
    return -1


def _bar(what: str) -> None:
    """A progress bar as tqdm draws one, on stderr with carriage returns."""
    for percent in (0, 50, 100):
        sys.stderr.write("\r{}: {:3d}%|{:<10}| {}/4".format(what, percent, "#" * (percent // 10), percent // 25))
    sys.stderr.write("\n")


def _dataset(path: Optional[str]) -> Optional[list[Any]]:
    if path is None:
        return []
    try:
        with open(path, encoding="utf-8") as file:
            samples = json.load(file)
        return samples if all(isinstance(s["input"] + s["target"], str) for s in samples) else None
    except (OSError, ValueError, TypeError, KeyError):
        return None


def _safetensors_shapes(folder: str) -> dict[str, list[int]]:
    """Shapes of the linear layers."""
    found = {}
    for name in os.listdir(folder):
        if name.endswith(".safetensors"):
            with open(os.path.join(folder, name), "rb") as file:
                header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
            for tensor, entry in header.items():
                if tensor != "__metadata__" and len(entry["shape"]) == 2 and "embed" not in tensor:
                    found[tensor] = entry["shape"]
    return found


def _gguf_kinds(path: str) -> set[int]:
    """The types of the tensors in a GGUF file; nothing for what is none."""
    with open(path, "rb") as file:
        if file.read(4) != b"GGUF":
            return set()
        _, tensors, pairs = struct.unpack("<IQQ", file.read(20))
        for _ in range(pairs):
            _text(file)
            _value(file, _number(file, "I"))
        kinds = set()
        for _ in range(tensors):
            _text(file)
            for _ in range(_number(file, "I")):
                file.read(8)
            kinds.add(_number(file, "I"))
            file.read(8)
    return kinds


_SCALARS = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}


def _number(file: Any, code: str) -> int:
    return int(struct.unpack("<" + code, file.read(struct.calcsize("<" + code)))[0])


def _text(file: Any) -> None:
    file.read(_number(file, "Q"))


def _value(file: Any, kind: int) -> None:
    if kind == 8:
        _text(file)
    elif kind == 9:
        item, count = _number(file, "I"), _number(file, "Q")
        for _ in range(count):
            _value(file, item)
    else:
        file.read(_SCALARS[kind])


def _digest(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            digest.update(block)
    return digest.hexdigest()
