"""The ctypes table against the header, as a C compiler lays it out: sizes, offsets, and values both ways.

Values matter: a float declared as int has the right size and the right offset, and sends nonsense.
"""

from __future__ import annotations

import ctypes as c
import enum
import inspect
import re
from collections.abc import Mapping
from functools import reduce
from pathlib import Path
from typing import Any, Union

import pytest

from rkruntime import abi_1_1 as abi
from tests.fakes import INCLUDE, compile_library

Value = Union[str, float, int]
POINTER = 1 << 40  # from here on, an int stands for an address


def _numbers(prefix: str, fields: str) -> dict[str, Value]:
    """Field paths with values of their own: i int, u uint8, f float, b bool, s char*, p pointer, z size_t, e enum."""
    found: dict[str, Value] = {}
    for i, field in enumerate(fields.split(), 1):
        name, kind = field.split(":")
        value: dict[str, Value] = {
            "i": -1000 - i, "f": i + 0.25, "b": 1, "s": f"{i}.5", "p": POINTER + 16 * i, "z": (1 << 35) + i,
            "u": 200 + i, "e": 2,
        }  # fmt: skip
        found[prefix + name] = value[kind]
    return found


# One case per struct; RKLLMInput once for each member of its union.
CASES: dict[str, tuple[str, dict[str, Value]]] = {
    "RKLLMExtendParam": ("RKLLMExtendParam", _numbers("", "base_domain_id:i reserved[0]:u reserved[111]:u")),
    "RKLLMParam": (
        "RKLLMParam",
        _numbers(
            "",
            "model_path:s max_context_len:i max_new_tokens:i top_k:i top_p:f temperature:f repeat_penalty:f "
            "frequency_penalty:f presence_penalty:f mirostat:i mirostat_tau:f mirostat_eta:f skip_special_token:b "
            "is_async:b img_start:s img_end:s img_content:s extend_param.base_domain_id:i "
            "extend_param.reserved[0]:u extend_param.reserved[111]:u",
        ),
    ),
    "RKLLMLoraAdapter": (
        "RKLLMLoraAdapter",
        _numbers("", "lora_adapter_path:s lora_adapter_name:s scale:f"),
    ),
    "RKLLMEmbedInput": ("RKLLMEmbedInput", _numbers("", "embed:p n_tokens:z")),
    "RKLLMTokenInput": ("RKLLMTokenInput", _numbers("", "input_ids:p n_tokens:z")),
    "RKLLMMultiModelInput": ("RKLLMMultiModelInput", _numbers("", "prompt:s image_embed:p n_image_tokens:z")),
    "prompt": ("RKLLMInput", _numbers("", "input_type:e prompt_input:s")),
    "embed": ("RKLLMInput", _numbers("", "input_type:e embed_input.embed:p embed_input.n_tokens:z")),
    "token": ("RKLLMInput", _numbers("", "input_type:e token_input.input_ids:p token_input.n_tokens:z")),
    "multimodal": (
        "RKLLMInput",
        _numbers(
            "",
            "input_type:e multimodal_input.prompt:s multimodal_input.image_embed:p multimodal_input.n_image_tokens:z",
        ),
    ),
    "RKLLMLoraParam": ("RKLLMLoraParam", _numbers("", "lora_adapter_name:s")),
    "RKLLMPromptCacheParam": ("RKLLMPromptCacheParam", _numbers("", "save_prompt_cache:i prompt_cache_path:s")),
    "RKLLMInferParam": ("RKLLMInferParam", _numbers("", "mode:e lora_params:p prompt_cache_params:p")),
    "RKLLMResultLastHiddenLayer": (
        "RKLLMResultLastHiddenLayer",
        _numbers("", "hidden_states:p embd_size:i num_tokens:i"),
    ),
    "RKLLMResult": (
        "RKLLMResult",
        _numbers(
            "",
            "text:s token_id:i last_hidden_layer.hidden_states:p last_hidden_layer.embd_size:i "
            "last_hidden_layer.num_tokens:i",
        ),
    ),
}
STRUCTS = sorted({struct for struct, _ in CASES.values()})
ENUMS = (abi.LLMCallState, abi.RKLLMInputType, abi.RKLLMInferMode)
# As published for 1.1.x; the header is checked against it, too.
SIZES = {
    "RKLLMParam": 200, "RKLLMExtendParam": 116, "RKLLMInput": 32, "RKLLMEmbedInput": 16, "RKLLMTokenInput": 16,
    "RKLLMMultiModelInput": 24, "RKLLMInferParam": 24, "RKLLMLoraParam": 8, "RKLLMLoraAdapter": 24,
    "RKLLMPromptCacheParam": 16, "RKLLMResult": 32, "RKLLMResultLastHiddenLayer": 16,
}  # fmt: skip


def _literal(value: Value) -> str:
    if isinstance(value, str):
        return f'"{value}"'
    return f"{value}LL" if isinstance(value, int) else repr(value)


def _functions(case: str, struct: str, fields: Mapping[str, Value]) -> list[str]:
    """C functions of one case: fill a struct, and tell size, offset and value of each of its fields."""
    fills, tells = [], []
    for i, (path, value) in enumerate(fields.items()):
        member = f"(({struct} *)0)->{path}"
        cast = "" if isinstance(value, (str, float)) else f"(__typeof__({member}))"
        fills.append(f"s->{path} = {cast}{_literal(value)};")
        seen = f"strtod(s->{path}, NULL)" if isinstance(value, str) else f"(double)(intptr_t)s->{path}"
        if isinstance(value, float):
            seen = f"(double)s->{path}"
        tells += [
            f"size_t offset_{case}_{i}(void) {{ return offsetof({struct}, {path}); }}",
            f"size_t size_{case}_{i}(void) {{ return sizeof({member}); }}",
            f"double see_{case}_{i}(const {struct} *s) {{ return {seen}; }}",
        ]
    return [*tells, f"void fill_{case}({struct} *s) {{ {' '.join(fills)} }}"]


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> c.CDLL:
    folder = tmp_path_factory.mktemp("probe")
    lines = ["#include <stdlib.h>", "#include <rkllm.h>", "#pragma GCC visibility push(default)"]
    lines += [f"size_t sizeof_{struct}(void) {{ return sizeof({struct}); }}" for struct in STRUCTS]
    lines += [f"int value_{m.name}(void) {{ return {m.name}; }}" for kind in ENUMS for m in kind]
    for case, (struct, fields) in CASES.items():
        lines += _functions(case, struct, fields)
    source = folder / "probe.c"
    source.write_text("\n".join(lines) + "\n")
    return c.CDLL(str(compile_library(source, folder / "probe.so")))


def _owner(instance: Any, path: str) -> tuple[Any, str]:
    *parents, last = path.split(".")
    return reduce(getattr, parents, instance), last


def _get(instance: Any, path: str) -> Any:
    owner, last = _owner(instance, path)
    name, _, index = last.partition("[")
    value = getattr(owner, name)
    return value[int(index.rstrip("]"))] if index else value


def _set(instance: Any, path: str, value: Value) -> None:
    owner, last = _owner(instance, path)
    name, _, index = last.partition("[")
    if index:
        getattr(owner, name)[int(index.rstrip("]"))] = value
    elif isinstance(value, int) and value >= POINTER and isinstance(getattr(owner, name), c._Pointer):
        setattr(owner, name, c.cast(value, type(getattr(owner, name))))
    else:
        setattr(owner, name, value.encode() if isinstance(value, str) else value)


def _plain(value: Any) -> Any:
    """A field's value as CASES writes it."""
    if isinstance(value, c._Pointer):
        return c.cast(value, c.c_void_p).value
    return value.decode() if isinstance(value, bytes) else value


def _offset(kind: type[Any], path: str) -> tuple[int, int]:
    """Offset and size of a field by its path, through nested structs and arrays."""
    offset = size = 0
    for part in path.split("."):
        name, _, index = part.partition("[")
        descriptor = getattr(kind, name)
        offset, size = offset + descriptor.offset, descriptor.size
        kind = dict(_all_fields(kind))[name]
        if index:
            size = c.sizeof(kind._type_)
            offset += int(index.rstrip("]")) * size
    return offset, size


def _all_fields(kind: type[Any]) -> list[tuple[str, type[Any]]]:
    fields = list(kind._fields_)
    for name in getattr(kind, "_anonymous_", ()):
        fields += dict(fields)[name]._fields_
    return fields


@pytest.mark.parametrize("struct", STRUCTS)
def test_sizes_are_the_headers_and_the_published_ones(probe: c.CDLL, struct: str) -> None:
    assert c.sizeof(getattr(abi, struct)) == getattr(probe, f"sizeof_{struct}")() == SIZES[struct]


@pytest.mark.parametrize("case", CASES)
def test_fields_lie_where_c_puts_them(probe: c.CDLL, case: str) -> None:
    struct, fields = CASES[case]
    for i, path in enumerate(fields):
        in_c = (getattr(probe, f"offset_{case}_{i}")(), getattr(probe, f"size_{case}_{i}")())
        assert _offset(getattr(abi, struct), path) == in_c, path


@pytest.mark.parametrize("case", CASES)
def test_python_reads_what_c_wrote(probe: c.CDLL, case: str) -> None:
    struct, fields = CASES[case]
    instance = getattr(abi, struct)()
    getattr(probe, f"fill_{case}")(c.byref(instance))
    assert {path: _plain(_get(instance, path)) for path in fields} == fields


@pytest.mark.parametrize("case", CASES)
def test_c_reads_what_python_wrote(probe: c.CDLL, case: str) -> None:
    struct, fields = CASES[case]
    instance = getattr(abi, struct)()
    for path, value in fields.items():
        _set(instance, path, value)
    for i, (path, value) in enumerate(fields.items()):
        see = getattr(probe, f"see_{case}_{i}")
        see.restype = c.c_double
        assert see(c.byref(instance)) == float(value), path


def test_every_field_of_every_struct_is_probed() -> None:
    for struct in STRUCTS:
        probed = {re.split(r"[.\[]", path)[0] for s, fields in CASES.values() if s == struct for path in fields}
        assert probed == {n for n, _ in _all_fields(getattr(abi, struct)) if not n.startswith("_")}, struct
    tables = {n for n, v in vars(abi).items() if inspect.isclass(v) and issubclass(v, c.Structure)}
    assert tables == set(STRUCTS)


def test_enumerators_have_the_headers_values(probe: c.CDLL) -> None:
    for kind in ENUMS:
        assert issubclass(kind, enum.IntEnum)
        for member in kind:
            assert getattr(probe, f"value_{member.name}")() == member, member


def test_the_table_has_the_headers_functions() -> None:
    header = Path(INCLUDE / "rkllm.h").read_text()
    declared = re.findall(r"^(?:int|RKLLMParam) (rkllm_\w+)\(([^)]*)\);", header, re.MULTILINE)
    counts = {name: 0 if arguments == "void" else arguments.count(",") + 1 for name, arguments in declared}
    assert {name: len(arguments) for name, (_, arguments) in abi.SIGNATURES.items()} == counts
    assert set(abi.ERROR_CHECKERS) < set(abi.SIGNATURES)
