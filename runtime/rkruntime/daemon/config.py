"""The daemon's settings: one table, from which come the keys of its file, the options of its command, and the docs.

How the model is run stands in a table of its own, which `run` and `chat` share.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Optional

import click
import yaml

from rk3588 import yamltable
from rk3588.errors import BoardError, UsageError
from rk3588.sampling import DEFAULTS, Sampling
from rkruntime import settings
from rkruntime.settings import Number, Settings

from . import hosts
from .jobs import EngineSettings


class Address(NamedTuple):
    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def is_loopback(self) -> bool:
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"


class _AddressType(click.ParamType):  # type: ignore[type-arg, unused-ignore]  # generic from click 8.4 on
    name = "HOST:PORT"

    def convert(self, value: Any, param: Optional[click.Parameter], ctx: Optional[click.Context]) -> Address:
        if isinstance(value, Address):
            return value
        host, _, port = str(value).rpartition(":")
        bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
        if not bare or (":" in bare and bare == host) or not port.isascii() or not port.isdigit() or int(port) > 65535:
            self.fail(f"{value!r} is not an address like 127.0.0.1:8080 or [::1]:8080", param, ctx)
        return Address(bare, int(port))


class _Origin(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    name = "ORIGIN"

    def convert(self, value: Any, param: Optional[click.Parameter], ctx: Optional[click.Context]) -> str:
        text = str(value).strip()
        if text in ("*", "null", "file://"):  # the last two are what pages without a host call themselves
            return text
        text = text.rstrip("/")
        if hosts.origin(text) is None:
            self.fail(f"{value!r} is not an origin like https://chat.example.org (or `*` for any)", param, ctx)
        return text


class _Host(click.ParamType):  # type: ignore[type-arg, unused-ignore]
    name = "NAME"

    def convert(self, value: Any, param: Optional[click.Parameter], ctx: Optional[click.Context]) -> str:
        text = str(value).strip()
        if not hosts.is_name_or_pattern(text):
            what = "a host's name without a port, like chat.example.org or *.example.org"
            self.fail(f"{value!r} is not {what}", param, ctx)
        return text


class Option(NamedTuple):
    """``name`` is the key in the file and, with dashes, the long option."""

    name: str
    kind: Any  # click.ParamType, which is generic in some of its versions only
    default: Any
    help: str
    is_list: bool = False

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")


_PATH = click.Path(path_type=Path)
_POSITIVE = Number(0, min_open=True)

OPTIONS = (
    Option("bundle", _PATH, None, "The bundle to serve; needed."),
    Option("listen", _AddressType(), Address("127.0.0.1", 8080), "Where to listen; port 0 takes a free one."),
    Option("keys", _PATH, None, "File of API keys, a `NAME:KEY` or a `KEY` on each line. Without it, any key will do."),
    Option("insecure", click.BOOL, False, "Allow an address beyond this machine without keys."),
    Option("cors", _Origin(), (), "Origins whose web pages may call, or `*`; several in a list.", True),
    Option("allowed_hosts", _Host(), (), "More names to reach it by: `NAME`, `*.NAME`; several in a list.", True),
    Option("name", click.STRING, None, "What the model is called [the bundle's name]."),
    Option("sim_library", _PATH, None, "The librksim.so that counts tokens [the packaged one]."),
    *(Option(each.name, each.kind, each.default, each.help) for each in settings.TABLE),
    Option("strict", click.BOOL, False, "Refuse requests with other sampling, instead of naming it in x-rk-ignored."),
    Option("queue_length", click.IntRange(0, 10000), 32, "Requests that may wait; more get 429."),
    Option("deadline_s", _POSITIVE, 600.0, "Seconds from a request's arrival to its last token."),
    Option("patience", _POSITIVE, 1.0, "Multiplies every deadline of the worker; a slower machine wants more."),
    Option("keep_alive_s", _POSITIVE, 5.0, "Seconds of silence after which a stream gets a sign of life."),
    Option("sse_comments", click.BOOL, False, "Send signs of life as SSE comments; some clients break on those."),
    Option("drain_s", Number(0), 30.0, "Seconds that answers under way get when the daemon is told to end."),
    Option("max_body_kb", click.IntRange(1, 1 << 20), 4096, "Largest request, in KiB."),
    Option("max_bodies_kb", click.IntRange(1), 65536, "Most that the requests under way may hold together, in KiB."),
    Option("body_s", _POSITIVE, 60.0, "Seconds within which the body of a request has to come."),
    Option("header_s", _POSITIVE, 10.0, "Seconds within which the head of a request has to come."),
    Option("send_s", _POSITIVE, 30.0, "Seconds after which a client that reads nothing of its answer is dropped."),
    Option("max_connections", click.IntRange(1, 100_000), 512, "Most connections; for one more, the idlest is closed."),
    Option("max_messages", click.IntRange(1), 1024, "Most messages of a conversation."),
    Option("state_dir", _PATH, None, "Where failed loads are remembered [in memory only]."),
    Option("log", click.Choice(["debug", "info", "warning", "error"]), "info", "How much is logged."),
)  # fmt: skip


@dataclass(frozen=True)
class Config:
    """Values of ``OPTIONS``, checked."""

    bundle: Path
    listen: Address
    keys: Optional[Path]
    insecure: bool
    cors: tuple[str, ...]
    allowed_hosts: tuple[str, ...]
    name: Optional[str]
    sim_library: Optional[Path]
    model: Settings  # all of its TABLE
    strict: bool
    queue_length: int
    deadline_s: float
    patience: float
    keep_alive_s: float
    sse_comments: bool
    drain_s: float
    max_body_kb: int
    max_bodies_kb: int
    body_s: float
    header_s: float
    send_s: float
    max_connections: int
    max_messages: int
    state_dir: Optional[Path]
    log: str
    sampling: Sampling = DEFAULTS  # what the model is loaded with: of ``model`` and the bundle

    def engine(self) -> EngineSettings:
        return EngineSettings(
            bundle=self.bundle,
            model=self.model,
            sim_library=self.sim_library,
            queue_length=self.queue_length,
            deadline_s=self.deadline_s,
            patience=self.patience,
            state_dir=self.state_dir,
        )


def command_options(*leave_out: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """A decorator: every option but those left out; what was not given arrives as None, or () for a list."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed([o for o in OPTIONS if o.name not in leave_out]):
            if option.kind is click.BOOL:
                off = option.flag.replace("--", "--no-", 1)
                add = click.option(f"{option.flag}/{off}", option.name, default=None, help=option.help)
            else:
                add = click.option(
                    option.flag, option.name, type=option.kind, multiple=option.is_list, help=_help(option)
                )
            command = add(command)
        return command

    return decorate


def make(file: Optional[Path], given: Mapping[str, Any]) -> Config:
    """What stands in ``file``, under what was given on the command line; UsageError says which value is wrong."""
    values = {option.name: option.default for option in OPTIONS}
    if file is not None:
        values.update(_from_file(file))
    values.update({name: value for name, value in given.items() if value is not None and value != ()})
    if values["bundle"] is None:
        raise UsageError("which bundle? Give --bundle FOLDER, or `bundle: FOLDER` in the file of --config")
    others = {name: value for name, value in values.items() if name not in settings.BY_NAME}
    config = Config(model=Settings.of(values), **others)
    if not (config.listen.is_loopback or config.keys or config.insecure):
        raise UsageError(
            f"{config.listen} can be reached from other machines, and there is no file of API keys: give --keys FILE, "
            "or --insecure if everybody there may use the model"
        )
    return config


def _help(option: Option) -> str:
    return option.help + (f" [{option.default}]" if option.default not in (None, ()) else "")


def _from_file(file: Path) -> dict[str, Any]:
    """Values by key. Paths are relative to the file's folder."""
    try:
        _, table = yamltable.read(file, "`key: value` lines")
        table.only(option.name for option in OPTIONS)
        found = {option.name: _value(table, option) for option in OPTIONS if table.node_of(option.name) is not None}
    except BoardError as error:
        raise UsageError(str(error)) from error
    return {key: file.parent / value if isinstance(value, Path) else value for key, value in found.items()}


def _value(table: yamltable.Table, option: Option) -> Any:
    node = table.need(option.name)
    if option.is_list:
        nodes = node.value if isinstance(node, yaml.SequenceNode) else [node]
        return tuple(_scalar(table, each, option) for each in nodes)
    return _scalar(table, node, option)


def _scalar(table: yamltable.Table, node: yaml.Node, option: Option) -> Any:
    if not isinstance(node, yaml.ScalarNode) or not str(node.value).strip():
        table.fail(node, f"{option.name!r} has to have one value")
    try:
        return option.kind.convert(str(node.value), None, None)
    except click.BadParameter as error:
        table.fail(node, f"{option.name!r}: {error.message.rstrip('.')}")
