"""Keeps hashes of the prompts that a model has seen, so that other machines can tell whether it saw a prompt.

A model folder must not hand on the prompts of its training data, which may be private or under a licence. A hash cannot
be turned back, but whoever has the folder can test a prompt that they guess: that is what it is for. The salt, which
differs by training data and stands beside the hashes, keeps one table of guesses from serving for all models. Whoever
does not want even that deletes the file; an evaluation then says that nothing can be checked.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from safe_rlhf_video.contracts import STRICT, read_json, write_json
from safe_rlhf_video.data.preferences import normalise_prompt
from safe_rlhf_video.errors import CheckpointError

FILE_NAME = "prompts.json"
FORMAT_VERSION: Literal[1] = 1
# Of a SHA-256. Among 15,000 prompts a new one is taken for a known one once in 10^15 times.
NUM_BYTES = 8


@dataclass(frozen=True)
class PromptHashes:
    """Hashes of prompts, equal for prompts that differ in case and white space alone.

    Attributes:
        salt: hashed before each prompt.
        hashes: `NUM_BYTES` bytes of each, rising, in base64: 160 kB for SafeSora's 14,711 prompts.
    """

    __pydantic_config__ = STRICT

    salt: str
    hashes: str

    def __post_init__(self) -> None:
        if len(base64.b64decode(self.hashes, validate=True)) % NUM_BYTES:
            raise ValueError(f"hashes: expected {NUM_BYTES} bytes for each prompt")

    def among(self, prompts: Iterable[str]) -> set[str]:
        """The normalised texts of those prompts that are among the hashed ones."""
        known = self._known()
        return {text for prompt in prompts if _hash(text := normalise_prompt(prompt), self.salt) in known}

    def joined(self, prompts: Iterable[str]) -> PromptHashes:
        """These and the hashes of further prompts."""
        hashes = self._known() | {_hash(normalise_prompt(prompt), self.salt) for prompt in prompts}
        return PromptHashes(self.salt, base64.b64encode(b"".join(sorted(hashes))).decode())

    def _known(self) -> set[bytes]:
        content = base64.b64decode(self.hashes)
        return {content[start : start + NUM_BYTES] for start in range(0, len(content), NUM_BYTES)}


@dataclass(frozen=True)
class _PromptsFile:
    """The content of prompts.json: the prompts that training learned from, or chose the checkpoint by."""

    __pydantic_config__ = STRICT

    format_version: Literal[1]
    trained: PromptHashes


def hash_prompts(prompts: Iterable[str], salt: str) -> PromptHashes:
    """Hashes prompts; the order and repetitions do not matter."""
    return PromptHashes(salt, "").joined(prompts)


def write_trained_prompts(folder: Path, trained: PromptHashes) -> None:
    """Writes prompts.json into a model folder, which is made if it is not there.

    Raises:
        OSError: the disk is full or the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / FILE_NAME, _PromptsFile(FORMAT_VERSION, trained))


def read_trained_prompts(folder: Path) -> PromptHashes | None:
    """Reads the prompts.json of a model folder; None where there is none, as in folders of earlier releases.

    Raises:
        CheckpointError: it is damaged, or of another format version.
    """
    path = folder / FILE_NAME
    if not path.exists():
        return None
    return read_json(_PromptsFile, path, CheckpointError, "copy the model folder again, or delete this file").trained


def _hash(normalised: str, salt: str) -> bytes:
    return hashlib.sha256(f"{salt}/{normalised}".encode(errors="surrogatepass")).digest()[:NUM_BYTES]
