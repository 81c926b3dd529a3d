"""Identifies what decides the scores of a model folder, by the hashes of its files."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safe_rlhf_video.errors import CheckpointError


@dataclass(frozen=True)
class Fingerprints:
    """Both fingerprints of a model folder: `fingerprint_model` and `fingerprint_trained`."""

    model: str
    trained: str


def read_fingerprints(folder: Path) -> Fingerprints:
    """Computes both fingerprints of a model folder; each of its files is read once.

    Raises:
        CheckpointError: a file cannot be read.
    """
    record = folder / "model.json"
    hashes = _hash_files(folder, [record, *_weight_files(folder)])
    return Fingerprints(_join(hashes), _join({path: digest for path, digest in hashes.items() if path != record}))


def fingerprint_model(folder: Path) -> str:
    """Identifies what decides the scores of a model folder; its calibration does not, so the folder may contain it.

    Of a merged model's own backbone, model.json has the fingerprint, which is compared when it is loaded.

    Raises:
        CheckpointError: a file cannot be read.
    """
    return read_fingerprints(folder).model


def fingerprint_trained(folder: Path) -> str:
    """Identifies what was trained, wherever its backbone is: a copy that is handed on has the same fingerprint.

    Raises:
        CheckpointError: a file cannot be read.
    """
    return _join(_hash_files(folder, _weight_files(folder)))


def join_fingerprints(models: Sequence[str]) -> str:
    """Identifies what decides the scores of several model folders that are loaded together."""
    return hashlib.sha256("".join(models).encode()).hexdigest()[:32]


def _weight_files(folder: Path) -> list[Path]:
    return [*folder.glob("*.safetensors"), *folder.glob("adapters/*/*.safetensors")]


def _hash_files(folder: Path, files: Sequence[Path]) -> dict[Path, bytes]:
    """File -> relative path and SHA-256."""
    hashes = {}
    try:
        for path in sorted(files):
            with open(path, "rb") as file:
                content = hashlib.file_digest(file, "sha256").digest()
            hashes[path] = path.relative_to(folder).as_posix().encode() + content
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be read ({error}); copy the model folder again") from error
    return hashes


def _join(hashes: Mapping[Path, bytes]) -> str:
    return hashlib.sha256(b"".join(hashes.values())).hexdigest()[:32]
