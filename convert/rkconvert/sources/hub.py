"""Models on the Hugging Face hub: ``user/repo[@revision]``, or ``user/repo:file.gguf[@revision]``, with or without
``hf:`` before it, or the address of a page there.

What a model is, is known before its weights are here: their headers are asked for first, a few megabytes. So a plan,
a taken target or an architecture nobody supports costs no download.
"""

from __future__ import annotations

import os
import posixpath
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import unquote

from rk3588 import files
from rk3588.errors import CheckpointError, RkError, UsageError
from rk3588.gguf import part_of

from . import gguf_file
from .base import CARD, LICENCE, Checkpoint, Origin
from .hub_client import Repository
from .huggingface import CONFIGURATION, COPIED, INDEX, MOST_HEADER, SINGLE, read_configuration
from .opening import open_checkpoint, open_source, whole_models

HUB = "hf:"  # before a name that cannot be mistaken for a path
_NAME = re.compile(r"([\w.-]+/[\w.-]+?)(?::([^@:]+))?(?:@([^@:\s]+))?", re.ASCII)
_PAGE = re.compile(
    r"https://(?:www\.)?(?:huggingface\.co|hf\.co|hf-mirror\.com)/([\w.-]+/[\w.-]+)"
    r"(?:/(?:blob|resolve|tree)/([^/?#]+)(?:/([^?#]+))?)?/?(?:[?#].*)?",
    re.ASCII,
)
_FILES = (".gguf", ".safetensors", ".json", ".bin", ".rkllm")  # a mistyped path, not a repository
_MOST_PASSED_ON = 64  # a card, licences and notices; models have fewer than ten
_GGUF_HEAD = 32 << 20  # its header holds the tokenizer: 8 MB with 128,000 tokens, 16 MB with 256,000
_PART_HEAD = 4 << 20  # of a part but the first, whose header holds nothing but its tensors' places
_SAFETENSORS_HEAD = 1 << 20  # asked for again with the true size where that is more

Progress = Callable[[str, int, int], None]
Opener = Callable[[Path], Checkpoint]


@dataclass(frozen=True)
class HubName:
    """What a user asked for."""

    repository: str
    file: str | None = None
    revision: str | None = None

    def __str__(self) -> str:
        file = f":{self.file}" if self.file else ""
        return self.repository + file + (f"@{self.revision}" if self.revision else "")


@dataclass(frozen=True)
class HubModel:
    """A model found on the hub: its configuration is here, its ``weights`` (file names) may be still there."""

    repository: Repository
    origin: Origin
    configuration: tuple[Path, ...]
    weights: tuple[str, ...]

    @property
    def missing(self) -> int:
        """Bytes of weights that are not in the cache."""
        return sum(self.repository.sizes[f] for f in self.weights if self.repository.cached(f) is None)


def hub_name(text: str) -> str | None:
    """``hf:USER/REPO[:FILE][@REVISION]`` as it is, or of a page's address as copied from a browser; None of a path."""
    page = _PAGE.fullmatch(text)
    if page is None:
        return text if text.startswith(HUB) else None
    name, revision, file = (part and unquote(part) for part in page.groups())
    return HUB + name + (f":{file}" if file else "") + (f"@{revision}" if revision else "")


def parse(text: str) -> HubName | None:
    """``text`` as the name of a model on the hub, or the address of its page; None when it can only be a path."""
    surely = hub_name(text)
    name = (surely or text).removeprefix(HUB)
    match = _NAME.fullmatch(name)
    if not match or name.startswith((".", "-")) or "/." in name or (not surely and match[1].lower().endswith(_FILES)):
        if surely:
            raise UsageError(f"{text[:300]} names no model on the hub: give USER/REPO or USER/REPO:FILE.gguf")
        return None
    if match[2] and not match[2].lower().endswith(".gguf"):
        raise UsageError(f"{text}: only a GGUF file can be named behind ':'; for anything else give the repository")
    return HubName(*match.groups())


def find(wanted: HubName) -> HubModel:
    """Look the model up and fetch its configuration; CheckpointError when there is nothing to convert."""
    repository = Repository(wanted.repository, wanted.revision)
    file = wanted.file or _only_gguf(repository)
    _passed_on(repository)  # refuses what a download would: nothing is fetched in vain
    if file is None:
        names = [name for name in (*CONFIGURATION, INDEX) if name in repository.sizes]
        configuration = tuple(repository.small(name) for name in names)
        sharded = INDEX in names and SINGLE not in repository.sizes  # as transformers chooses
        weights = _shards(configuration[names.index(INDEX)], repository) if sharded else (SINGLE,)
    else:
        configuration, weights = (), _checked_gguf(file, repository)
    origin = Origin(repository.name, repository.revision, repository.commit, file or "")
    return HubModel(repository, origin, configuration, weights)


def configuration(wanted: HubName) -> Checkpoint:
    """What a repository says of a model, its card and its licence with it. The weights stay where they are."""
    repository = Repository(wanted.repository, wanted.revision)
    if wanted.file or CONFIGURATION[0] not in repository.sizes:
        return peek(find(wanted), open_checkpoint)
    return configuration_in(repository)


def configuration_in(repository: Repository) -> Checkpoint:
    """The same of a repository with a config.json."""
    names = [name for name in CONFIGURATION if name in repository.sizes]
    files = [repository.small(name) for name in (*names, *_passed_on(repository))]
    origin = Origin(repository.name, repository.revision, repository.commit)
    return replace(read_configuration(files[0].parent), origin=origin)


def _passed_on(repository: Repository) -> list[str]:
    """What of a repository a bundle's card carries on."""
    found = [name for name in repository.sizes if name == CARD or (LICENCE.match(name) and "/" not in name)]
    if len(found) > _MOST_PASSED_ON:
        raise CheckpointError(
            f"{repository.name} has {len(found)} files that are called as licences and notices are, and "
            f"{_MOST_PASSED_ON} are the most that is carried on: is it a model's repository?"
        )
    for name in found:
        repository.check_size(name, files.TEXT)
    return found


def _only_gguf(repository: Repository) -> str | None:
    """None for a repository with a Hugging Face folder; else the one GGUF file in it."""
    names = repository.sizes
    if "config.json" in names and (SINGLE in names or INDEX in names):
        return None
    ggufs = whole_models(_ggufs(repository))
    if len(ggufs) == 1:
        return ggufs[0]
    if ggufs:
        raise CheckpointError(
            f"{repository.name} has {len(ggufs)} GGUF files, name one as {repository.name}:FILE: {', '.join(ggufs)}"
        )
    if "config.json" in names and any(name.endswith(".bin") for name in names):
        raise CheckpointError(
            f"{repository.name} has its weights only as .bin files, which can run code when they are read: look for a "
            "revision or a repository with safetensors"
        )
    raise CheckpointError(f"{repository.name} has neither a config.json with safetensors nor a GGUF file")


def _ggufs(repository: Repository) -> list[str]:
    return sorted(name for name in repository.sizes if name.lower().endswith(".gguf"))


def _checked_gguf(file: str, repository: Repository) -> tuple[str, ...]:
    """``file``, or all parts of the model of which it is one."""
    if file not in repository.sizes:
        there = ", ".join(_ggufs(repository)) or "none"
        raise CheckpointError(f"{repository.name} has no file {file}; its GGUF files are: {there}")
    folder, name = posixpath.split(file)
    part = part_of(name)
    names = tuple(posixpath.join(folder, other) for other in part.names) if part else (file,)
    for other in names:
        if other not in repository.sizes:
            raise CheckpointError(
                f"{file} is one part of a model, and {repository.name} has no file {other}: name another of its GGUF "
                "files, or ask for that part where it was published"
            )
    return names


def _shards(index: Path, repository: Repository) -> tuple[str, ...]:
    """The shards an index names; what is wrong with it is found when the model is opened."""
    try:
        named = files.read_json(index, files.INDEX, index.parent, CheckpointError)["weight_map"].values()
        return tuple(sorted({name for name in named if isinstance(name, str) and name in repository.sizes}))
    except (RkError, KeyError, TypeError, AttributeError):
        return ()


def peek(model: HubModel, opener: Opener = open_source) -> Checkpoint:
    """The model as far as a plan needs it. Its files are gone again: tensors cannot be read from them."""
    with tempfile.TemporaryDirectory(prefix="rkconvert-") as scratch:
        folder = Path(scratch)
        files.follow_links(folder)  # those to weights in the cache, made below
        for file in model.configuration:
            files.copy(file, folder / file.name, files.TOKENIZER, file.parent, CheckpointError)
        path = folder / Path(model.origin.file).name if model.origin.file else folder
        try:
            for name in model.weights:
                _write_head(model, name, folder / Path(name).name)
            source = opener(path)
        except CheckpointError as error:
            shown = str(error).replace(f"{folder}/", f"{model.origin.repository}/").replace(scratch, str(model.origin))
            raise CheckpointError(shown) from error
    notes = (f"{model.missing / 1e6:.1f} MB are to be downloaded from {model.origin}",) if model.missing else ()
    passed_on = {*COPIED, CARD} if source.kind == "huggingface" else {CARD}
    sizes = model.repository.sizes
    copied = sum(size for name, size in sizes.items() if name in passed_on or (LICENCE.match(name) and "/" not in name))
    return replace(source, origin=model.origin, copied_bytes=copied, notes=(*notes, *source.notes))


def _write_head(model: HubModel, name: str, target: Path) -> None:
    """A file of the true size that holds the header and, from there on, nothing: a hole."""
    repository, there = model.repository, model.repository.cached(name)
    if there is not None:
        target.symlink_to(there)
        return
    size = repository.sizes[name]
    gguf = name.lower().endswith(".gguf")
    part = part_of(posixpath.basename(name)) if gguf else None
    later = part is not None and part.number > 1
    most = _PART_HEAD if later else _GGUF_HEAD if gguf else _SAFETENSORS_HEAD
    head = repository.piece(name, 0, min(size, most))
    needed = 0 if gguf else 8 + int.from_bytes(head[:8], "little")
    if len(head) < needed <= min(size, MOST_HEADER):
        head = repository.piece(name, 0, needed)
    target.write_bytes(head)
    os.truncate(target, max(size, len(head)))
    if gguf:
        _write_configuration(repository, name, target, len(head))


def _write_configuration(repository: Repository, name: str, target: Path, there: int) -> None:
    """The few tensors of a GGUF file that its configuration is read from, where they begin behind ``there``."""
    tensors = gguf_file.read_header(target).tensors
    for tensor in (tensors[key] for key in gguf_file.CONFIGURATION if key in tensors):
        if tensor.offset + tensor.nbytes > there:
            with target.open("r+b") as file:
                file.seek(tensor.offset)
                file.write(repository.piece(name, tensor.offset, tensor.nbytes))


def download(model: HubModel, progress: Progress, opener: Opener = open_source) -> Checkpoint:
    """The model with its weights in the cache, ready to be read."""
    repository = model.repository
    repository.need_space(model.missing)
    for name in _passed_on(repository):
        repository.small(name)
    total, done = sum(repository.sizes[name] for name in model.weights), 0

    def step(size: int) -> None:
        nonlocal done
        done += size
        progress("download", min(done, total), total)

    weights = [repository.large(name, step) for name in model.weights]
    path = weights[model.weights.index(model.origin.file)] if model.origin.file else weights[0].parent
    return replace(opener(path), origin=model.origin)
