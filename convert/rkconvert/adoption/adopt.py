"""A ``.rkllm`` that somebody else made, and what it is said to be made of, checked before it becomes a bundle.

Nothing in such a file can be read but its ends. So what the bundle says of it are claims, each with who makes it,
checked against each other as far as that goes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from rk3588 import compatibility, families, files, quant, rkllm, rkllm_file
from rk3588.errors import TargetTaken, UsageError, WrongModel
from rkconvert.commands import default_name
from rkconvert.plan import variant_name
from rkconvert.request import NAME
from rkconvert.sources.base import Checkpoint
from rkconvert.toolkit.options import PLATFORM, BoardOptions
from rkconvert.toolkit.preflight import BOARD_DTYPES, RK3576_DTYPES, check_options

from . import base as bases
from . import claims as said
from . import rkllm_source
from .claims import Claim, Claims
from .rkllm_source import Rkllm

_RELEASE = re.compile(r"[0-9]{1,3}(\.[0-9]{1,3}){1,2}(b[0-9]{1,3})?")
LEAST_SHARE, MOST_SHARE = 0.9, 1.2  # of the size that shape and dtype ask for; published files have 0.99 to 1.06


@dataclass(frozen=True)
class Request:
    """The options of ``rk3588 adopt``, by their names; None where one was not given."""

    file: str
    base: str | None = None
    out: Path = Path()
    name: str | None = None
    dtype: str | None = None
    toolkit_version: str | None = None
    chat_template: Path | None = None
    overwrite: bool = False
    force: bool = False


@dataclass(frozen=True)
class Adoption:
    """What will be done: which file, with what of which model, into which folder."""

    rkllm: Rkllm
    base: Checkpoint
    template: str | None
    claims: Claims
    name: str
    dtype: str
    folder: Path
    overwrite: bool = False
    notes: tuple[str, ...] = ()


def prepare(request: Request) -> Adoption:
    """All that can be known before the file is copied or downloaded; everything that speaks against it is told here."""
    found = rkllm_source.find(request.file)
    claims, notes = said.settle([_given(request), *found.claims])
    _check_platform(found, claims)
    if said.DTYPE in claims:
        _check_dtype(found, claims[said.DTYPE])
    base = bases.find(found, request.base)
    name = _name(request, found, base)
    if said.DTYPE not in claims:
        raise UsageError(f"nothing says which dtype {found} has: give --dtype{_likely_dtype(found, base)}")
    dtype = str(claims[said.DTYPE].value)
    doubts = [*_size_doubts(found, base, dtype), *_toolkit_doubts(base, claims)]
    if doubts and not request.force:
        raise WrongModel(f"{doubts[0]}; --force adopts it all the same")
    template = bases.template_of(base, request.chat_template)
    level = claims[said.LEVEL].value if said.LEVEL in claims else 1
    rate = claims[said.RATE].value if said.RATE in claims else 0.0
    folder = request.out / variant_name(name, dtype, level, rate, community=False)
    if files.exists(folder) and not request.overwrite:
        raise TargetTaken(f"{folder} exists already: remove it, choose another -o, or give --overwrite")
    notes += [f"forced, though {doubt}" for doubt in doubts]
    notes += [*base.notes, *_open_questions(found, claims, template)]
    return Adoption(found, base, template, claims, name, dtype, folder, request.overwrite, tuple(notes))


def _given(request: Request) -> Claims:
    if request.dtype is not None:
        check_options([request.dtype], 0.0, BoardOptions())
    options = {said.DTYPE: request.dtype, said.TOOLKIT: request.toolkit_version}
    if request.toolkit_version is not None and not _RELEASE.fullmatch(request.toolkit_version):
        shown = repr(request.toolkit_version[:40])
        raise UsageError(f"--toolkit-version {shown}: give a release of rkllm-toolkit, such as 1.1.4")
    return {key: Claim(value, "whoever adopted it") for key, value in options.items() if value is not None}


def _check_platform(found: Rkllm, claims: Claims) -> None:
    claim = claims.get(said.PLATFORM)
    if claim and claim.value != PLATFORM:
        raise WrongModel(f"{found} is for the {str(claim.value).upper()}, by {claim.by}: an RK3588 cannot run it")


def _check_dtype(found: Rkllm, claim: Claim) -> None:
    if claim.value in BOARD_DTYPES:
        return
    whose = "is the RK3576's" if claim.value in RK3576_DTYPES else "is none that an RK3588 runs"
    raise WrongModel(f"{found} is {claim.value}, by {claim.by}, which {whose}: it runs {', '.join(BOARD_DTYPES)}")


def _name(request: Request, found: Rkllm, base: Checkpoint) -> str:
    """What was given, else what the file is called before the first claim, else what the base is."""
    own, of_base = said.model_name(found.name), said.model_name(default_name(base.path, base.origin))
    chosen = request.name or (own if own.lower() not in ("", "model") else of_base)
    if not NAME.fullmatch(chosen):
        raise UsageError(f"{chosen!r} cannot be a bundle's name: give --name with letters, digits, '.', '_' and '-'")
    return chosen


def _likely_dtype(found: Rkllm, base: Checkpoint) -> str:
    """Which one the size speaks for, for a sentence."""
    shape = base.shape
    if shape is None:
        return f", one of {', '.join(BOARD_DTYPES)}"
    sizes = {dtype: rkllm_file.expected_size(shape, quant.SCHEMES[dtype]) for dtype in BOARD_DTYPES}
    dtype = min(sizes, key=lambda name: abs(sizes[name] - found.ends.size))
    share = found.ends.size / sizes[dtype]
    if not LEAST_SHARE <= share <= MOST_SHARE:
        return f", one of {', '.join(BOARD_DTYPES)}"
    return f"; its size is nearest to that of {dtype} (made of {base.name})"


def _size_doubts(found: Rkllm, base: Checkpoint, dtype: str) -> list[str]:
    if base.shape is None:
        return []
    expected = rkllm_file.expected_size(base.shape, quant.SCHEMES[dtype])
    share = found.ends.size / expected
    if LEAST_SHARE <= share <= MOST_SHARE:
        return []
    return [
        f"{found} has {found.ends.size / 1e6:,.1f} MB, where {base.name} as {dtype} has about {expected / 1e6:,.1f}: "
        "it is of another model (--base) or another dtype (--dtype), or is cut off"
    ]


def _toolkit_doubts(base: Checkpoint, claims: Claims) -> list[str]:
    """A family that the claimed toolkit did not take yet. What lists of before 1.1.1 said is not known here."""
    family_of = families.of_gguf if base.kind == "gguf" else families.of_class
    family, claim = family_of(base.architecture), claims.get(said.TOOLKIT)
    first = family.toolkit if family else ""
    known_later = families.version(first) > families.version("1.1.1")
    if family is None or claim is None or not known_later:
        return []
    if families.version(str(claim.value)) >= families.version(first):
        return []
    return [
        f"rkllm-toolkit takes {family.title} from {first} on, and this is of {claim}: one of --base and "
        "--toolkit-version is wrong"
    ]


def _open_questions(found: Rkllm, claims: Claims, template: str | None) -> list[str]:
    notes = []
    if said.PLATFORM not in claims:
        notes.append(f"nothing says which chip {found.name} is for: it is taken to be the RK3588")
    toolkit = claims.get(said.TOOLKIT)
    if toolkit is None:
        notes.append("nothing says which rkllm-toolkit wrote it, so a deployment cannot compare it with the runtime")
    else:
        able = compatibility.runtimes_for(str(toolkit.value))
        spoken = any(map(rkllm.is_spoken, able))
        if not (spoken and any("1.1" in rkllm.families_of(version) for version in able)):
            only = "" if spoken else f"; this version of rk3588 speaks {rkllm.SPOKEN_RELEASES} only"
            for_which = compatibility.runtimes_told(str(toolkit.value)) or "of the same version"
            notes.append(f"it is of rkllm-toolkit {toolkit}, for librkllmrt {for_which}{only}")
    if template is None:
        notes.append("there is no chat template: nobody can chat with it, nor deploy it; give --chat-template FILE")
    return notes
