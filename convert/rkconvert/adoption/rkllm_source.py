"""The ``.rkllm`` that is adopted: a file here, or ``hf:USER/REPO[:FILE][@REVISION]`` on the Hugging Face hub, or the
address of its page there."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from rk3588 import files, rkllm_file
from rk3588.errors import CheckpointError, UsageError, WrongModel
from rk3588.mistaken import listed
from rk3588.rkllm_file import SUFFIX, Ends
from rkconvert.sources.base import Origin
from rkconvert.sources.hub import HUB, hub_name
from rkconvert.sources.hub_client import Repository

from . import claims
from .claims import Claim, Claims

_NAME = re.compile(r"([\w.-]+/[\w.-]+)(?::([^@]+))?(?:@([^@:\s]+))?", re.ASCII)
_BLOCK = 1 << 20

Step = Callable[[int], None]


@dataclass(frozen=True)
class Rkllm:
    """``name`` is that of the file, ``ends`` what was read of it; ``repository`` is None for a file here."""

    name: str
    ends: Ends
    path: Path | None = None
    repository: Repository | None = None
    origin: Origin | None = None

    def __str__(self) -> str:
        return f"{self.origin.repository}:{self.origin.file}" if self.origin else str(self.path)

    @property
    def claims(self) -> list[Claims]:
        """What is claimed of it, the surest first: by its own text, by its name, by its repository's and revision's."""
        version = rkllm_file.toolkit_version(self.ends.tail)
        text = {claims.TOOLKIT: Claim(version, "the file's own text")} if version else {}
        found = [text, claims.of_name(self.name, "the file's name")]
        if self.origin:
            found.append(claims.of_name(self.origin.revision, "the revision's name"))
            found.append(claims.of_name(self.origin.repository, "the repository's name"))
        return found

    def fetch(self, step: Step) -> Path:
        """Where the whole file is on this machine: for one on the hub, in its cache when it is downloaded. ``step`` is
        told the bytes that are there."""
        if self.path is not None:
            return self.path
        assert self.repository is not None and self.origin is not None
        there = self.repository.cached(self.origin.file) is not None
        self.repository.need_space(0 if there else self.ends.size)
        return self.repository.large(self.origin.file, step).resolve()

    def put(self, here: Path, target: Path, step: Step) -> None:
        """What ``fetch`` found, at ``target``."""
        if self.repository is not None:
            try:
                os.link(here, target)  # nobody writes to the cache's files: each is named by its hash
            except OSError:  # another file system
                _copy(here, target, step)
        else:
            _copy(here, target, step)
        if rkllm_file.ends(target) != self.ends:
            raise CheckpointError(f"{self} is another file than it was a moment ago: leave it alone, and try again")


def find(text: str) -> Rkllm:
    """The file that ``text`` names, its first and last bytes read; UsageError, CheckpointError for what is none."""
    if name := hub_name(text):
        return _on_hub(name)
    path = Path(text)
    if not text or not files.exists(path):
        named = text[:300] or repr(text)
        raise UsageError(f"there is no {named}: give a {SUFFIX} file, or {HUB}USER/REPO:FILE for one on the hub")
    if path.is_dir():
        inside = sorted(f.name for f in path.iterdir() if f.name.lower().endswith(SUFFIX))
        advice = f"give one of its files: {listed(inside)}" if inside else f"it holds no {SUFFIX}: give one"
        raise UsageError(f"{path} is a folder: {advice}")
    try:
        files.check(path, None, CheckpointError)
        return _checked(Rkllm(path.name, rkllm_file.ends(path), path=path))
    except FileNotFoundError:
        raise CheckpointError(f"{path} is a link that leads nowhere: download the file again") from None


def _on_hub(text: str) -> Rkllm:
    match = _NAME.fullmatch(text.removeprefix(HUB))
    if match is None:
        raise UsageError(f"{text[:300]} names nothing on the hub: give {HUB}USER/REPO or {HUB}USER/REPO:FILE{SUFFIX}")
    repository = Repository(match[1], match[3])
    file = _file_in(repository, match[2])
    size = repository.sizes[file]
    head = repository.piece(file, 0, rkllm_file.HEAD)
    tail = repository.piece(file, max(size - rkllm_file.TAIL, 0), rkllm_file.TAIL)
    origin = Origin(repository.name, repository.revision, repository.commit, file)
    found = Rkllm(PurePosixPath(file).name, Ends(head, tail, size), repository=repository, origin=origin)
    return _checked(found)


def _file_in(repository: Repository, asked: str | None) -> str:
    names = sorted(name for name in repository.sizes if name.lower().endswith(SUFFIX))
    if asked is not None and asked in repository.sizes:
        return asked
    if not names:
        raise WrongModel(f"{repository.name} has no {SUFFIX} file: see {repository.shown}/{repository.name}/tree/main")
    if asked is not None:
        raise WrongModel(f"{repository.name} has no file {asked[:300]}; its {SUFFIX} files are: {listed(names, 40)}")
    if len(names) > 1:
        raise WrongModel(
            f"{repository.name} has {len(names)} {SUFFIX} files, name one as {HUB}{repository.name}:FILE: "
            f"{listed(names, 40)}"
        )
    return names[0]


def _checked(found: Rkllm) -> Rkllm:
    if wrong := rkllm_file.problem(found.ends):
        raise WrongModel(f"{found} {wrong}")
    if found.name.lower().removesuffix(SUFFIX).endswith(rkllm_file.LORA_SUFFIX):
        raise WrongModel(f"{found} is by its name a LoRA of rkllm-toolkit, and no model: give the model beside it")
    return found


def _copy(source: Path, target: Path, step: Step) -> None:
    block = memoryview(bytearray(_BLOCK))
    with files.opened(source, None, CheckpointError) as file, target.open("xb") as out:
        while size := file.readinto(block):
            out.write(block[:size])
            step(size)
