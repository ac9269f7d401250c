"""How a bundle is run: one dataclass, from whose fields come the options of `run`, `chat` and `serve`, the keys of the
daemon's file, what `/set` takes, and the frame that a worker is sent.

A new setting is a new field here, and is used where a bundle is loaded: in ``model.py``.
"""

# ruff: noqa: RUF009  # `setting` makes fields, as `dataclasses.field` does

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple, Optional

import click

from rk3588 import runtime
from rk3588.conversation_rules import FOLD, REFUSE
from rk3588.errors import UsageError
from rk3588.rkllm import CONTEXT_RESERVE, MAX_BUILT_CONTEXT, MAX_CONTEXT
from rk3588.sampling import DEFAULTS, Sampling, settle

from . import loops


class Number(click.FloatRange):
    """A range of finite numbers: click's own takes nan. What is none is told what is expected."""

    def convert(self, value: Any, param: Optional[click.Parameter], ctx: Optional[click.Context]) -> float:
        with contextlib.suppress(click.BadParameter):
            number = float(super().convert(value, param, ctx))
            if math.isfinite(number):
                return number
        raise click.BadParameter(_expected("a number", self, value), ctx, param)


class Whole(click.IntRange):
    """A range of whole numbers. What is none is told what is expected."""

    def convert(self, value: Any, param: Optional[click.Parameter], ctx: Optional[click.Context]) -> int:
        with contextlib.suppress(click.BadParameter):
            return int(super().convert(value, param, ctx))
        raise click.BadParameter(_expected("a whole number", self, value), ctx, param)


def _expected(what: str, kind: Any, value: Any) -> str:
    least, most = kind.min, kind.max
    if kind.min_open:
        bounds = f"above {least}" + ("" if most is None else f" and at most {most}")
    else:
        bounds = f"of {least} or more" if most is None else f"from {least} to {most}"
    return f"has to be {what} {bounds}, not {str(value)!r}"


class _Library(click.ParamType):  # type: ignore[type-arg, unused-ignore]  # generic from click 8.4 on
    """A path, or ``sim`` (``sim-1.3``, …) for a simulated runtime of this installation."""

    name = "file"

    def convert(self, value: Any, _param: Optional[click.Parameter], _ctx: Optional[click.Context]) -> Path:
        return runtime.simulated(str(value)) if runtime.is_twin(str(value)) else Path(value)


class Setting(NamedTuple):
    """``name`` is the field of a dataclass, the key in a file and, with dashes, the long option; ``flags`` are others
    for it in a terminal."""

    name: str
    kind: Any  # click.ParamType, which is generic in some of its versions only
    default: Any
    help: str
    flags: tuple[str, ...] = ()
    metavar: Optional[str] = None
    is_list: bool = False

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")


_SETTING = "setting"


def setting(kind: Any, default: Any, help: str, **more: Any) -> Any:
    """A field of a dataclass that users can set; its other parts are those of ``Setting``."""
    return field(default=default, metadata={_SETTING: Setting("", kind, default, help, **more)})


def group(kind: Callable[[], Any]) -> Any:
    """A field that holds another such dataclass, whose settings stand among its owner's."""
    return field(default_factory=kind, metadata={_SETTING: kind})


def table_of(owner: Any) -> tuple[Setting, ...]:
    """The settings of a dataclass, in the order of its fields."""
    found: list[Setting] = []
    for each in fields(owner):
        about = each.metadata.get(_SETTING)
        if isinstance(about, Setting):
            found.append(about._replace(name=each.name))
        elif about is not None:
            found += table_of(about)
    return tuple(found)


_PATH = click.Path(path_type=Path)
_INT32 = (1 << 31) - 1  # the most that the library's structs hold
_OR = "the model's own, else"


@dataclass(frozen=True)
class Settings:
    """Sampling that is None is the model's own, else ``DEFAULTS``."""

    library: Optional[Path] = setting(
        _Library(),
        None,
        "The librkllmrt.so to use, or `sim` (`sim-1.3`) for the simulated runtime [RKLLM_LIBRARY, else "
        "Rockchip's where it is installed and the bundle is for it, else the simulated].",
        metavar="FILE|sim",
    )
    template: Optional[Path] = setting(
        _PATH, None, "Chat template to use instead of the bundle's: a Jinja file.", metavar="FILE"
    )
    system_role: str = setting(
        click.Choice([FOLD, REFUSE]),
        FOLD,
        "Where the template has no system role: `fold` the system prompt into the user's message, or `refuse` it.",
    )
    context: int = setting(
        Whole(0, _INT32),
        0,
        f"Tokens of context; 0: the model's, at most {MAX_CONTEXT}.",
        flags=("-c",),
        metavar="N",
    )
    beyond_board: bool = setting(
        click.BOOL,
        False,
        f"Allow a context above what a board can use: {MAX_CONTEXT} tokens with librkllmrt 1.1, {MAX_BUILT_CONTEXT} "
        "from 1.2 on, if the model was built for that.",
    )
    max_tokens: int = setting(
        Whole(-1, _INT32),
        -1,
        "Most tokens of an answer; -1: the context's.",
        flags=("-n",),
        metavar="N",
    )
    loop_limit: int = setting(
        click.IntRange(0),
        loops.DEFAULT,
        "Tokens of the same over and over after which an answer is ended; 0: never.",
        metavar="N",
    )
    temperature: Optional[float] = setting(
        Number(0, 100),
        None,
        f"Temperature; 0: greedy [{_OR} {DEFAULTS.temperature:g}].",
        flags=("--temp",),
        metavar="T",
    )
    top_k: Optional[int] = setting(
        Whole(1, _INT32),
        None,
        f"Draw from the K likeliest tokens; 1: greedy [{_OR} {DEFAULTS.top_k}].",
        metavar="K",
    )
    top_p: Optional[float] = setting(
        Number(0, 1, min_open=True),
        None,
        f"Draw from this share of probability [{_OR} {DEFAULTS.top_p:g}].",
        metavar="P",
    )
    repeat_penalty: Optional[float] = setting(
        Number(0, 100, min_open=True),
        None,
        f"Above 1 holds repetition down, 1 is none [{_OR} {DEFAULTS.repeat_penalty:g}].",
        metavar="X",
    )
    lora: Optional[str] = None  # as Model.choose_lora takes it
    template_variables: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Settings:
        """Out of a mapping that may have other keys too; UsageError for what no single value shows to be wrong."""
        names = {each.name for each in fields(cls)}
        found = cls(**{name: value for name, value in values.items() if name in names})
        if found.max_tokens == 0:
            raise UsageError("max_tokens 0 asks for no answers: give a number above 0, or -1")
        if found.context:
            check_context(found.context)
        return found

    def sampling(self, own: Mapping[str, Any]) -> Sampling:
        """How tokens are drawn from a model that asks for ``own`` (a bundle's ``sampling``)."""
        return settle(own, {name: getattr(self, name) for name in Sampling._fields})

    def longer_than(self, context: int, most: int = MAX_CONTEXT) -> str:
        """A longer context than the one there is, and how to ask for it where ``most`` is all that can be used."""
        beyond = " --beyond-board" if context >= most and not self.beyond_board else ""
        return f"a longer context (--context N{beyond})"

    def frame(self) -> dict[str, Any]:
        """As JSON, for a worker; ``from_frame`` reads it."""
        return {name: str(v) if isinstance(v, Path) else v for name, v in asdict(self).items()}

    @classmethod
    def from_frame(cls, frame: Mapping[str, Any]) -> Settings:
        paths = {name: Path(frame[name]) for name in ("library", "template") if frame[name] is not None}
        return cls(**{**frame, **paths})


def check_context(tokens: int) -> None:
    """UsageError for a context that a model cannot be used with."""
    if tokens <= CONTEXT_RESERVE:
        raise UsageError(f"a context of {tokens} tokens holds no prompt: ask for more than {CONTEXT_RESERVE}")


TABLE = table_of(Settings)
BY_NAME = {each.name: each for each in TABLE}
SHORT = {flag.lstrip("-"): each.name for each in TABLE for flag in each.flags}  # `temp`, as in --temp
WHILE_RUNNING = (*Sampling._fields, "max_tokens", "loop_limit", "context")  # what `/set` takes


def options(*leave_out: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator: the table as options of a command, which takes them by name."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for each in reversed([each for each in TABLE if each.name not in leave_out]):
            shape: dict[str, Any] = {"type": each.kind, "metavar": each.metavar}
            if each.kind is click.BOOL:
                shape = {"is_flag": True}
            default = f" [{each.default}]" if each.default not in (None, False) else ""
            flags = (*each.flags, each.flag)
            command = click.option(*flags, each.name, default=each.default, help=each.help + default, **shape)(command)
        return command

    return decorate


def parse(name: str, text: str) -> Any:
    """One setting's value from what was typed; UsageError where it cannot be one."""
    kind = BY_NAME[name].kind
    try:
        return kind.convert(text, None, None)
    except click.BadParameter as error:
        raise UsageError(f"{name}: {complaint(kind, error)}") from error


def complaint(kind: Any, error: click.BadParameter) -> str:
    """What click says of a value; for true and false, of which it names none, what it has to be besides."""
    said = error.message.rstrip(".")
    return f"{said}; give true or false" if kind is click.BOOL else said
