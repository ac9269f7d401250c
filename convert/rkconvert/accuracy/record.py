"""What was measured of a bundle, into its manifest and its card."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from rk3588 import bundle
from rk3588.bundle import Bundle
from rkconvert.cards.card import Variant, model_card, original_card, read_base
from rkconvert.sources.base import CARD

from .result import Accuracy


def record(found: Bundle, accuracy: Accuracy) -> None:
    """Into the bundle's manifest and card. The bundle is replaced as a whole; its other files are not copied."""
    with bundle.new_folder(found.path.absolute(), replace=True) as folder:
        for entry in found.manifest["files"]:
            copy = folder / entry["path"]
            copy.parent.mkdir(exist_ok=True)
            if entry["path"] != CARD:
                _link_or_copy(found.path / entry["path"], copy)
        manifest = {key: value for key, value in found.manifest.items() if key not in ("schema", "files")}
        manifest["accuracy"] = accuracy.as_dict()
        named = {**manifest, "files": found.manifest["files"]}
        card = model_card([Variant.of(Bundle(found.path, named))], original_card(read_base(found.path)))
        (folder / CARD).write_text(card, encoding="utf-8")
        bundle.write_manifest(folder, manifest)


def _link_or_copy(source: Path, copy: Path) -> None:
    try:
        os.link(source.resolve(), copy)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, copy)
