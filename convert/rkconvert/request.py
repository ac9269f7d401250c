"""What one call of ``rkconvert build`` asks for: checked as far as that goes, then made into a plan."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path

from rk3588 import families, files, quant, templates
from rk3588.errors import CheckpointError, TargetTaken, UsageError
from rk3588.nearest import nearest
from rk3588.quant import Scheme

from . import calibration, generating
from .adapters import in_bundle, lora
from .adapters.lora import Lora, LoraOption
from .artifact.layout import Artifact
from .calibration import Dataset, Generate
from .plan import Plan, plan_artifacts
from .rotation import emit
from .rotation.options import ALPHA, KINDS, LEARNED, ROTATED_ALPHA, USUAL, Emit, Rotate, Smooth
from .rotation.rotate import refuse
from .sources.base import Checkpoint, Source
from .sources.opening import open_checkpoint, open_source
from .toolkit import install, preflight, releases
from .toolkit.job import ToolkitJob
from .toolkit.options import PLATFORM, BoardOptions
from .toolkit.preflight import Likely
from .toolkit.releases import Release

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
TARGETS = ("sim", PLATFORM)


@dataclass(frozen=True)
class Request:
    """The options of ``rkconvert build``, by their names; None where one was not given."""

    targets: tuple[str, ...] = ("sim",)
    dtypes: tuple[str, ...] = ("w8a8",)
    hybrid_rate: float = 0.0
    loras: tuple[str, ...] = ()
    lora_mode: str | None = None
    optimization_level: int | None = None
    npu_cores: int | None = None
    algorithm: str | None = None
    extra_qparams: Path | None = None
    dataset: Path | Generate | None = None
    chat_template: Path | None = None
    device: str | None = None
    max_context: int | None = None
    load_dtype: str | None = None
    custom_config: Path | None = None
    toolkit: str | None = None
    force: bool = False
    community_names: bool = False
    rotate: str | None = None
    smooth: str | None = None
    emit_hf: Path | None = None
    emit_dtype: str | None = None
    overwrite: bool = False
    follow_links: bool = False

    @property
    def board(self) -> BoardOptions | None:
        """What was given of rkllm-toolkit's options, over its defaults; None: not for a board."""
        if PLATFORM not in self.targets:
            return None
        given = {f.name: value for f in fields(BoardOptions) if (value := getattr(self, f.name)) is not None}
        return replace(BoardOptions(), **given)

    @property
    def release(self) -> Release:
        """Of the toolkit that is chosen, or the one that is in use; where there is none, of the one to be installed."""
        found = install.installed(self.toolkit)
        known = found and families.version(found.version)
        return found.release if found and known else releases.of(self.toolkit or releases.DEFAULT)

    @property
    def opener(self) -> Callable[[Path], Checkpoint]:
        """The simulated runtime, which also writes data to calibrate with, a rotation and the checks of a LoRA want a
        family known here; the toolkit takes others, too."""
        changed = self.rotate or self.smooth or isinstance(self.dataset, Generate)
        return open_source if "sim" in self.targets or self.loras or changed else open_checkpoint

    def open(self, path: Path) -> Checkpoint:
        """The model at ``path``; CheckpointError for what is none."""
        if self.follow_links:
            files.follow_links(path)
        try:
            return self.opener(path)
        except OSError as error:
            where = str(error.filename or path)
            raise CheckpointError(f"cannot read {where[:300]}: {error.strerror}") from error

    @property
    def rotation(self) -> Rotate | None:
        """None: the weights stay as they are."""
        return Rotate(self.rotate) if self.rotate else None

    @property
    def smoothing(self) -> Smooth | None:
        """None: outliers stay where they are. UsageError for what is no share."""
        if self.smooth is None:
            return None
        rotated = self.rotate is not None
        usual = ROTATED_ALPHA if rotated else ALPHA
        try:
            alpha = usual if self.smooth == USUAL else float(self.smooth)
        except ValueError:
            raise UsageError(f"--smooth {self.smooth}: give a number from 0 to 1, or none for {usual:g}") from None
        if not 0 <= alpha <= 1:
            raise UsageError(f"--smooth {self.smooth}: it is a share, from 0 to 1")
        return Smooth(alpha, rotated)

    @property
    def suffix(self) -> str:
        """What a bundle's name says of how its weights are changed."""
        return "".join(change.suffix for change in (self.rotation, self.smoothing) if change)

    @property
    def calibrates(self) -> bool:
        """Whether something is measured on texts before weights are stored."""
        return self.rotate == LEARNED or self.smooth is not None

    @property
    def emit(self) -> Emit | None:
        """A Hugging Face folder to write as well."""
        return Emit(self.emit_hf, self.emit_dtype or "fp32") if self.emit_hf else None

    @property
    def adapters(self) -> list[LoraOption]:
        return lora.parse_all(self.loras)

    def check(self) -> list[Likely]:
        """Everything that needs no look at the model: UsageError, or reasons to expect failure."""
        if PLATFORM not in self.targets:
            for name in ("toolkit", *(field.name for field in fields(BoardOptions))):
                if getattr(self, name) is not None and not (name == "dataset" and self.calibrates):
                    option = "--" + name.replace("_", "-")
                    others = ", or --smooth or --rotate learned" if name == "dataset" else ""
                    raise UsageError(f"{option} is for rkllm-toolkit: give --target {PLATFORM} as well{others}")
            preflight.check_hybrid(self.hybrid_rate)
        board = self.board
        likely = preflight.check_options(self.dtypes, self.hybrid_rate, board, self.release) if board else []
        for dtype in self.dtypes:
            quant.scheme(dtype)
        self._check_rotation()
        if self.lora_mode and not self.adapters:
            raise UsageError("--lora-mode says what to do with a LoRA: give one with --lora ADAPTER")
        return likely

    def _check_rotation(self) -> None:
        if self.rotate and self.rotate not in KINDS:
            raise UsageError(f"--rotate {self.rotate}: {nearest(self.rotate, KINDS)}")
        smoothing = self.smoothing
        if self.emit_hf and not (self.rotate or smoothing):
            raise UsageError("--emit-hf writes the model as --rotate turns it: give --rotate or --smooth as well")
        if self.emit_dtype and not self.emit_hf:
            raise UsageError("--emit-dtype says how the weights in a folder are stored: give --emit-hf DIR as well")
        if self.emit_hf and self.loras and self.lora_mode != "merge":
            raise UsageError(f"--emit-hf: a folder holds no LoRA: merge {self.adapters[0].name} with --lora-mode merge")
        changing = " and ".join(f"--{name}" for name in ("rotate", "smooth") if getattr(self, name))
        if changing and PLATFORM in self.targets and self.loras and self.lora_mode != "merge":
            raise UsageError(
                f"{changing}: rkllm-toolkit would read the LoRA {self.adapters[0].name} as it is, which is not for the "
                f"changed model: merge it (--lora-mode merge), or leave {changing} or --target rk3588 out"
            )

    def with_template(self, source: Checkpoint) -> Checkpoint:
        """``source`` with the chat template that was given, parsed to see that it is one."""
        if self.chat_template is None:
            return source
        text = templates.read(self.chat_template)
        if source.vocabulary is None:
            raise UsageError(
                f"--chat-template: the tokenizer of {source.path} is none that this version knows, so none is put into "
                "a bundle; give the template when it is run (rk3588 run --template)"
            )
        templates.check(text, str(self.chat_template))
        return replace(source, vocabulary=replace(source.vocabulary, chat_template=text))

    def plan(self, source: Checkpoint, name: str, out: Path | None, *, dry_run: bool = False) -> Plan:
        """The plan for ``source``, with all that can be known to go wrong told here.

        ``out``: where the bundles are to lie, None for none of them. ``dry_run``: one that exists is only noted.
        """
        schemes = [quant.scheme(dtype) for dtype in self.dtypes]
        source = self.with_template(source)
        job, remarks = self._toolkit_job(source, schemes, self.check())
        if isinstance(self.dataset, Generate):
            assert isinstance(source, Source)  # see ``opener``
            remarks.append(generating.check(source, self.dataset))
        self._check_can_change(source)
        loras = self._read_loras(source)
        plan = Plan(
            source=source,
            name=name,
            out=out or Path(),
            artifacts=self._artifacts(source, schemes) if out else (),
            overwrite=self.overwrite,
            loras=tuple(loras),
            lora_mode=self.lora_mode or lora.MODES[0],
            hybrid_rate=self.hybrid_rate,
            board=job,
            community_names=self.community_names,
            rotate=self.rotation,
            smooth=self.smoothing,
            calibration=self._dataset(source) if self.calibrates else None,
            emit=self.emit,
        )
        in_the_way = plan.folders_in_the_way
        if in_the_way and not dry_run:
            others = [a.scheme.name for a in plan.artifacts if not plan.folder(a).exists()]
            unbuilt = f"; nothing was built, not {', '.join(others)} either" if others else ""
            raise TargetTaken(in_the_way[0] + unbuilt)
        if job:
            preflight.check_loras(plan.source, [adapter.name for adapter in loras], job.options.algorithm)
        return replace(plan, remarks=(*remarks, *in_the_way))

    def _dataset(self, source: Checkpoint) -> Dataset | Generate:
        """What is calibrated with: samples, or what the model is to write when it is converted."""
        return self.dataset if isinstance(self.dataset, Generate) else calibration.load(self.dataset, source.vocabulary)

    def _artifacts(self, source: Checkpoint, schemes: list[Scheme]) -> tuple[Artifact, ...]:
        for_sim = "sim" in self.targets
        return plan_artifacts(source, schemes, for_sim=for_sim, hybrid_rate=self.hybrid_rate, rotate=self.rotation)

    def _check_can_change(self, source: Checkpoint) -> None:
        if self.rotate is None and self.smooth is None:
            return
        assert isinstance(source, Source)
        if self.rotate:
            refuse(source)
        if self.emit_hf and source.kind == "gguf":
            emit.settings(source)  # refuses what it cannot tell
        if source.kind == "gguf" and PLATFORM in self.targets:
            raise UsageError(
                f"{source.path}: rkllm-toolkit is given the changed model as a Hugging Face folder: convert from the "
                "Hugging Face model, or write the folder with --emit-hf DIR and convert that with --target rk3588"
            )

    def _toolkit_job(
        self, source: Checkpoint, schemes: list[Scheme], likely: list[Likely]
    ) -> tuple[ToolkitJob | None, list[str]]:
        """What rkllm-toolkit is to do, None for nothing, and what is to be noted of it."""
        options, remarks = self.board, list[str]()
        if options is None:
            return None, remarks
        for found, notes in (preflight.check_model(source, schemes, self.release), preflight.check_memory(source)):
            likely += found
            remarks += notes
        dataset = self._dataset(source)
        remarks += preflight.settle(likely, self.force)
        if releases.is_residual(options.algorithm):
            remarks.append(
                f"{options.algorithm} keeps what quantising lost as a LoRA in the bundle: without --lora "
                f"{in_bundle.RESIDUAL} the model runs as if by {options.algorithm.split('_')[0]}"
            )
        return ToolkitJob(options, dataset, install.needed(self.toolkit)), remarks

    def _read_loras(self, source: Checkpoint) -> list[Lora]:
        for adapter in self.adapters if self.follow_links else ():
            files.follow_links(adapter.path)
        return [lora.read(adapter, source) for adapter in self.adapters if isinstance(source, Source)]
