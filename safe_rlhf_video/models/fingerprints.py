"""Identifies what decides the scores of a model folder, by the hashes of its files."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from safe_rlhf_video.errors import CheckpointError


def fingerprint_model(folder: Path) -> str:
    """Identifies what decides a model folder's scores; its calibration does not, and so may lie in it.

    Of a merged model's own backbone, model.json has the fingerprint, which is compared when it is loaded.

    Raises:
        CheckpointError: a file cannot be read.
    """
    return _fingerprint(folder, [folder / "model.json", *_weight_files(folder)])


def fingerprint_trained(folder: Path) -> str:
    """Identifies what was trained, wherever its backbone lies: a copy that is handed on has the same.

    Raises:
        CheckpointError: a file cannot be read.
    """
    return _fingerprint(folder, _weight_files(folder))


def _weight_files(folder: Path) -> list[Path]:
    return [*folder.glob("*.safetensors"), *folder.glob("adapters/*/*.safetensors")]


def _fingerprint(folder: Path, files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    try:
        for path in sorted(files):
            with open(path, "rb") as file:
                content = hashlib.file_digest(file, "sha256").digest()
            digest.update(path.relative_to(folder).as_posix().encode() + content)
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be read ({error}); copy the model folder again") from error
    return digest.hexdigest()[:32]
