"""The ctypes tables against the committed layouts of each release, and against C: sizes, offsets, values both ways.

Values matter: a float declared as int has the right size and the right offset, and sends nonsense.
"""

from __future__ import annotations

import ctypes as c
import enum
import inspect
import re
from collections.abc import Mapping
from functools import reduce
from typing import Any, Union

import pytest

from rkruntime import abi_1_1, abi_1_2_0, abi_1_2_1, abi_1_3, abi_common, loader
from rkruntime.abi import Features, Perf, State
from tests import rkllm_headers
from tests.fakes import compile_library

Value = Union[str, float, int]
POINTER = 1 << 40  # from here on, an int stands for an address
MODULES: Mapping[str, Any] = {"1.1.1": abi_1_1, "1.2.0": abi_1_2_0, "1.2.3": abi_1_2_1, "1.3.1": abi_1_3}
LAYOUTS = {release: rkllm_headers.committed(release) for release in MODULES}
STRUCTS = [(release, name) for release, layout in LAYOUTS.items() for name in layout["structs"]]
ENUMS = ("LLMCallState", "RKLLMInputType", "RKLLMInferMode")


def _named(release: str, name: str) -> Any:
    """A name of the header in the release's table, or in what all have in common."""
    return getattr(MODULES[release], name, None) or getattr(abi_common, name)


def _fields(release: str, struct: str, before: str = "") -> dict[str, str]:
    """Path and C type of each field that holds a value, as the committed layout has them."""
    structs, found = LAYOUTS[release]["structs"], {}
    for path, field in structs[struct]["fields"].items():
        kind, array = re.fullmatch(r"(.*?)(?:\[(\d+)\])?", field["type"]).groups()  # type: ignore[union-attr]
        if kind in structs:
            found.update(_fields(release, kind, f"{before}{path}."))
        elif array:
            found.update({f"{before}{path}[{i}]": kind for i in (0, int(array) - 1)})
        elif kind != "struct":
            found[before + path] = kind
    return found


def _cases(release: str, struct: str) -> list[dict[str, Value]]:
    """Values of their own for all fields; one case for each member of RKLLMInput's union."""
    values = {path: _value(i, kind) for i, (path, kind) in enumerate(_fields(release, struct).items(), 1)}
    if struct != "RKLLMInput":
        return [values]
    members = ("prompt_input", "embed_input.", "token_input.", "multimodal_input.")
    head = {path: value for path, value in values.items() if not path.startswith(members)}
    return [{**head, **{p: v for p, v in values.items() if p.startswith(member)}} for member in members]


def _value(i: int, kind: str) -> Value:
    if kind in ("char *", "const char *"):
        return f"{i}.5"
    if kind.endswith(("*", "Callback")):
        return POINTER + 16 * i
    if kind in ("int32_t", "int", "int8_t", "uint8_t", "uint32_t", "size_t", "float", "bool"):
        small = {"int8_t": -i % 128 - 128, "uint8_t": 200 + i % 50, "uint32_t": (1 << 31) + i, "size_t": (1 << 35) + i}
        return {"float": i + 0.25, "bool": 1}.get(kind, small.get(kind, -1000 - i))
    return 1  # an enum


def _literal(value: Value) -> str:
    if isinstance(value, str):
        return f'"{value}"'
    return f"{value}LL" if isinstance(value, int) else repr(value)


def _functions(name: str, struct: str, fields: Mapping[str, Value]) -> list[str]:
    """C functions of one case: fill a struct, and tell the value of each of its fields."""
    fills, tells = [], []
    for i, (path, value) in enumerate(fields.items()):
        cast = "" if isinstance(value, float) else f"(__typeof__((({struct} *)0)->{path}))"
        fills.append(f"s->{path} = {cast}{_literal(value)};")
        seen = f"strtod(s->{path}, NULL)" if isinstance(value, str) else f"(double)(intptr_t)s->{path}"
        if isinstance(value, float):
            seen = f"(double)s->{path}"
        tells.append(f"double see_{name}_{i}(const {struct} *s) {{ return {seen}; }}")
    return [*tells, f"void fill_{name}({struct} *s) {{ {' '.join(fills)} }}"]


@pytest.fixture(scope="module")
def probes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, c.CDLL]:
    folder, found = tmp_path_factory.mktemp("probe"), {}
    for release in MODULES:
        lines = ["#include <stdlib.h>", "#include <rkllm.h>", "#pragma GCC visibility push(default)"]
        for struct in LAYOUTS[release]["structs"]:
            for i, fields in enumerate(_cases(release, struct)):
                lines += _functions(f"{struct}_{i}", struct, fields)
        source = folder / f"probe-{release}.c"
        source.write_text("\n".join(lines) + "\n")
        include = rkllm_headers.HEADERS[release].parent
        found[release] = c.CDLL(str(compile_library(source, source.with_suffix(".so"), include=include)))
    return found


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
    elif isinstance(value, int) and value >= POINTER and not isinstance(getattr(owner, name), (int, type(None))):
        setattr(owner, name, c.cast(value, type(getattr(owner, name))))
    else:
        setattr(owner, name, value.encode() if isinstance(value, str) else value)


def _plain(value: Any) -> Any:
    """A field's value as the cases have it."""
    if isinstance(value, (c._Pointer, c._CFuncPtr)):  # type: ignore[attr-defined]
        return c.cast(value, c.c_void_p).value
    return value.decode() if isinstance(value, bytes) else value


def _laid(kind: type[Any], before: str = "", offset: int = 0) -> dict[str, list[int]]:
    """Offset and size of each field, nested structs without a type's name walked through, as the layouts have them."""
    found = {}
    anonymous = getattr(kind, "_anonymous_", ())
    for name, field in kind._fields_:
        at = offset + getattr(kind, name).offset
        if name in anonymous:
            found.update(_laid(field, before, at))
            continue
        found[before + name] = [at, c.sizeof(field)]
        if inspect.isclass(field) and issubclass(field, c.Structure) and field.__name__.startswith("_"):
            found.update(_laid(field, f"{before}{name}.", at))
    return found


@pytest.mark.parametrize(("release", "struct"), STRUCTS)
def test_a_struct_is_laid_out_as_published(release: str, struct: str) -> None:
    table, layout = _named(release, struct), LAYOUTS[release]["structs"][struct]
    assert c.sizeof(table) == layout["size"]
    assert _laid(table) == {path: [field["offset"], field["size"]] for path, field in layout["fields"].items()}


@pytest.mark.parametrize(("release", "struct"), STRUCTS)
def test_values_go_both_ways(probes: dict[str, c.CDLL], release: str, struct: str) -> None:
    for number, fields in enumerate(_cases(release, struct)):
        probe, name = probes[release], f"{struct}_{number}"
        written_by_c = _named(release, struct)()
        getattr(probe, f"fill_{name}")(c.byref(written_by_c))
        assert {path: _plain(_get(written_by_c, path)) for path in fields} == fields
        written_here = _named(release, struct)()
        for path, value in fields.items():
            _set(written_here, path, value)
        for i, (path, value) in enumerate(fields.items()):
            see = getattr(probe, f"see_{name}_{i}")
            see.restype = c.c_double
            assert see(c.byref(written_here)) == float(value), path


@pytest.mark.parametrize("release", MODULES)
def test_a_table_has_all_of_its_header(release: str) -> None:
    module, layout = MODULES[release], LAYOUTS[release]
    both = {**vars(abi_common), **vars(module)}
    structs = {n for n, v in both.items() if inspect.isclass(v) and issubclass(v, c.Structure) and n[0] != "_"}
    assert structs == set(layout["structs"])
    assert {m.name: m.value for name in ENUMS for m in _named(release, name)} == layout["enums"]
    assert all(issubclass(_named(release, name), enum.IntEnum) for name in ENUMS)
    counts = {}
    for name, declaration in layout["functions"].items():
        arguments = declaration[declaration.index("(") + 1 : declaration.rindex(")")]
        counts[name] = 0 if arguments == "void" else arguments.count(",") + 1
    assert {name: len(arguments) for name, (_, arguments) in module.SIGNATURES.items()} == counts
    assert set(module.ERROR_CHECKERS) < set(module.SIGNATURES)


def test_what_each_release_can_do() -> None:
    able = {v: {name for name, yes in t.features._asdict().items() if yes} for v, t in loader.TABLES.items()}
    since_1_2_1 = {"perf", "logits", "native_template", "tools", "batch", "kv_range", "max_context", "end_token"}
    assert able == {
        "1.1": set(),
        "1.2.0": {"logits", "native_template", "max_context", "end_token"},
        "1.2.1": since_1_2_1,
        "1.3": {*since_1_2_1, "per_run_sampling"},
    }
    assert able["1.3"] == set(Features._fields)


@pytest.mark.parametrize("table", loader.TABLES.values(), ids=loader.TABLES)
def test_an_input_has_zeros_behind_it(table: Any) -> None:
    """1.3.1 read 48 bytes more than an input of 1.3.0 has, whatever lay there."""
    for given in (table.token_input([1, 2, 3]), table.text_input(b"x")):
        raw = c.string_at(c.addressof(given), 208)
        kind = type(given).input_type.offset
        assert not any(raw[:kind]) and not any(raw[kind + 24 : 208])
    assert table.token_input([1, 2, 3]).token_input.input_ids[2] == 3


@pytest.mark.parametrize("table", loader.TABLES.values(), ids=loader.TABLES)
def test_the_callback_goes_on_whatever_it_is_given(table: Any) -> None:
    """It returns 0, which 1.2.1 and later take for "go on"; a pause would look like a library that hangs."""
    heard: list[Any] = []
    whole = table.callback(lambda *what: bool(heard.append(what)))  # type: ignore[func-returns-value]
    function = getattr(whole, "result_callback", whole)
    assert [function(None, 7, state) for state in (0, 1, 2, 3, 4, 99)] == [0] * 6
    hidden = State.HIDDEN if table.version == "1.1" else State.OTHER
    states = [State.NORMAL, State.WAITING, State.FINISH, State.ERROR, hidden, State.OTHER]
    assert [(number, state) for number, state, _ in heard] == [(7, state) for state in states]


@pytest.mark.parametrize("release", ["1.2.3", "1.3.1"])
def test_figures_are_read_where_there_are_any(release: str) -> None:
    module = MODULES[release]
    table, result = loader.TABLES[module.VERSION], module.RKLLMResult()
    assert table.perf(c.pointer(result)) is None and table.perf(c.POINTER(module.RKLLMResult)()) is None
    result.perf = module.RKLLMPerfStat(12.5, 6, 100.0, 9, 512.5)
    assert table.perf(c.pointer(result)) == Perf(12.5, 6, 100.0, 9, 512.5)
    assert loader.TABLES["1.1"].perf(c.pointer(abi_1_1.RKLLMResult())) is None
