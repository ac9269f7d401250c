"""What a conversion will do, decided before anything is written: of which source, which bundles, and where."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rk3588 import bundle
from rk3588.errors import UsageError
from rk3588.quant import Scheme

from .adapters.lora import Lora
from .architectures.model import OUTPUT
from .artifact.layout import Artifact, make_artifact
from .calibration import Dataset, Generate
from .native_template import native_notes
from .rotation.options import Emit, Rotate, Smooth
from .rotation.rotate import outlined
from .sources.base import Checkpoint, Source
from .toolkit.job import ToolkitJob
from .toolkit.options import PLATFORM


def available_cores() -> int:
    return len(os.sched_getaffinity(0))


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything ``build.convert`` needs to know. ``source`` is a Source where the simulated runtime is a target."""

    source: Checkpoint
    name: str
    out: Path
    artifacts: tuple[Artifact, ...]
    overwrite: bool = False
    threads: int = field(default_factory=available_cores)
    loras: tuple[Lora, ...] = ()
    lora_mode: str = "adapter"  # or merge
    hybrid_rate: float = 0.0
    board: ToolkitJob | None = None  # None: not for a board
    community_names: bool = False
    rotate: Rotate | None = None  # None: the weights stay as they are
    smooth: Smooth | None = None  # None: outliers stay where they are
    calibration: Dataset | Generate | None = None  # what is measured for it, where that is needed
    emit: Emit | None = None  # a Hugging Face folder to write as well
    remarks: tuple[str, ...] = ()

    @property
    def sim_source(self) -> Source:
        """The source, of which the simulated runtime's artifact can be made."""
        assert isinstance(self.source, Source)
        return self.source

    @property
    def targets(self) -> list[str]:
        """What the bundles run on."""
        return [name for name, wanted in (("sim", self.for_sim), (PLATFORM, self.board)) if wanted]

    @property
    def for_sim(self) -> bool:
        return any(artifact.tensors for artifact in self.artifacts)

    @property
    def merged_loras(self) -> tuple[Lora, ...]:
        """What is added to the weights before they are quantised."""
        return self.loras if self.lora_mode == "merge" else ()

    @property
    def kept_loras(self) -> tuple[Lora, ...]:
        """What goes into the bundle as a file of its own."""
        return self.loras if self.lora_mode == "adapter" else ()

    @property
    def rotation(self) -> dict[str, Any]:
        """What is told of how the weights are turned; {}: they are not."""
        return dict(self.outlined.source.rotation)

    @property
    def smoothing(self) -> dict[str, Any]:
        """What is told of how its outliers are smoothed; {}: they are not."""
        return self.smooth.facts() if self.smooth else {}

    @property
    def outlined(self) -> Plan:
        """This plan, of the source as it will be: to be told, and for sizes. ``rotation.prepare`` makes it so."""
        if self.rotate is None or self.source.rotation:
            return self
        return replace(self, source=outlined(self.sim_source, self.rotate.facts()))

    @property
    def notes(self) -> tuple[str, ...]:
        ours = native_notes(self.source.vocabulary) if self.for_sim else ()
        return (*self.source.notes, *(note for lora in self.loras for note in lora.notes), *self.remarks, *ours)

    def folder(self, artifact: Artifact) -> Path:
        return self.out / self.variant(artifact)

    def variant(self, artifact: Artifact) -> str:
        """What tells this bundle from others of the same model; what is not usual is part of it."""
        level = self.board.options.optimization_level if self.board else 1
        changed = "".join(change.suffix for change in (self.rotate, self.smooth) if change)
        return variant_name(self.name, artifact.scheme.name, level, self.hybrid_rate, self.community_names, changed)

    def npu_model(self, artifact: Artifact) -> str:
        """The file that rkllm-toolkit writes."""
        return f"{self.variant(artifact)}.rkllm" if self.community_names else bundle.NPU_MODEL

    @property
    def folders_in_the_way(self) -> list[str]:
        """A sentence for each folder that exists already and is not to be replaced."""
        taken = [] if self.overwrite else [folder for folder in map(self.folder, self.artifacts) if folder.exists()]
        found = [f"{folder} exists already: remove it, choose another -o, or give --overwrite" for folder in taken]
        if self.emit and self.emit.folder.exists() and not self.overwrite:
            found.append(f"{self.emit.folder} exists already: remove it, choose another --emit-hf, or give --overwrite")
        return found


def variant_name(
    name: str, dtype: str, level: int, hybrid_rate: float, community: bool, changed: str = ""
) -> str:
    """A bundle's folder. ``changed``: how its weights are. ``community``: as the models that others publish are called,
    which knows no rotation: then it is another model."""
    if community:
        return f"{name}{changed}-{PLATFORM}-{dtype}-opt-{level}-hybrid-ratio-{float(hybrid_rate)}"
    unusual = "" if level == 1 else f"-opt{level}"
    return f"{name}-{PLATFORM}-{dtype}" + unusual + (f"-hybrid{hybrid_rate:g}" if hybrid_rate else "") + changed


def plan_artifacts(
    source: Checkpoint, schemes: Sequence[Scheme], *, for_sim: bool, hybrid_rate: float, rotate: Rotate | None = None
) -> tuple[Artifact, ...]:
    """An artifact for each scheme, without tensors where it is for a board only; UsageError for a choice that is none.

    Of a hybrid, the largest it can become: which layers have groups is decided when their errors are known.
    """
    twice = [dtype for dtype, n in Counter(s.name for s in schemes).items() if n > 1]
    if twice:
        raise UsageError(f"--dtype {twice[0]} is given more than once: one bundle is written for each dtype")
    unmixed = [s.name for s in schemes if hybrid_rate and not s.quantised]
    if unmixed:
        raise UsageError(f"--hybrid-rate mixes int8 layers with and without groups, and {unmixed[0]} has neither")
    if not for_sim:
        return tuple(Artifact(scheme, ()) for scheme in schemes)
    assert isinstance(source, Source)
    config = outlined(source, rotate.facts()).config if rotate else source.config
    linear = frozenset(name for name, shape in config.tensors().items() if len(shape) == 2) | {OUTPUT}
    return tuple(make_artifact(config, scheme, linear if hybrid_rate else None) for scheme in schemes)
