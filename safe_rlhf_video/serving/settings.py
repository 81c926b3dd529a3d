"""Defines and checks the settings of a server, before anything is loaded."""

from __future__ import annotations

import ipaddress
import math
import os
from dataclasses import dataclass, field, fields
from pathlib import Path

from safe_rlhf_video.errors import ConfigError

KEY_VARIABLE = "SAFE_RLHF_VIDEO_API_KEY"
MIN_KEY_CHARACTERS = 16

_WHOLE_NUMBERS = ("max_videos", "max_prompt_chars", "queue_size", "batch_size", "workers", "decode_memory_mb")
_AMOUNTS = ("max_body_mb", "max_clip_seconds", "timeout_s", "shutdown_s")


# What each option of `scripts/serve.py` means.
OPTIONS = {
    "host": "the address to listen at; one that other machines can reach needs a key",
    "port": "0 takes any free port",
    "video_root": "the folder that paths in requests are relative to; else they are refused",
    "backbone": "the backbone's folder, if it has moved since training",
    "device": "auto, cpu, cuda or cuda:1",
    "max_body_mb": "the size of a request, in 10^6 bytes",
    "max_clip_seconds": "the length of a clip",
    "max_videos": "the number of clips in a request",
    "max_prompt_chars": "the length of a prompt",
    "queue_size": "requests in work or waiting; one more is answered with 429",
    "timeout_s": "seconds from a request to its answer, and for decoding a clip; then 503",
    "shutdown_s": "seconds that requests in work have left when the server is ended",
    "batch_size": "clips scored at once",
    "batch_wait_ms": "how long a clip waits for others to be scored with",
    "workers": "decoding processes",
    "decode_memory_mb": "memory that each of them may use for a clip, in 10^6 bytes",
}


@dataclass(frozen=True)
class ServerSettings:
    """How a server runs, and what it allows; `OPTIONS` describes the fields.

    Attributes:
        model: model folders, such as a reward and a cost.
        api_key: the key that clients send; None asks for none.

    Raises:
        ConfigError: a value is wrong, or a key is needed and missing.
    """

    model: tuple[str, ...]
    host: str = "127.0.0.1"
    port: int = 8000
    video_root: Path | None = None
    api_key: str | None = field(default=None, repr=False)
    backbone: str | None = None
    device: str = "auto"
    max_body_mb: float = 64.0
    max_clip_seconds: float = 60.0
    max_videos: int = 64
    max_prompt_chars: int = 4096
    queue_size: int = 256
    timeout_s: float = 60.0
    shutdown_s: float = 15.0
    batch_size: int = 32
    batch_wait_ms: float = 5.0
    workers: int = 2
    decode_memory_mb: int = 2000

    def __post_init__(self) -> None:
        if not self.model:
            raise ConfigError("model: expected at least one model folder")
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port: expected a number from 0 to 65535, got {self.port}")
        for name in _WHOLE_NUMBERS:
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: expected at least 1, got {getattr(self, name)}")
        for name in _AMOUNTS:
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ConfigError(f"{name}: expected a positive number, got {value}")
        if not 0 <= self.batch_wait_ms <= 1000:
            raise ConfigError(f"batch_wait_ms: expected a number from 0 to 1000, got {self.batch_wait_ms}")
        if self.video_root is not None and not self.video_root.is_dir():
            raise ConfigError(f"video_root: {self.video_root} is not a folder; give the folder of the clips")
        if self.api_key is None and not self.is_loopback:
            raise ConfigError(
                f"host: {self.host} can be reached from other machines, which needs a key; give --api_key_file or "
                f"{KEY_VARIABLE}, or listen at 127.0.0.1"
            )
        if self.api_key is not None:
            _check_key(self.api_key)

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def max_body_bytes(self) -> int:
        """`max_body_mb` in bytes."""
        return int(self.max_body_mb * 1e6)

    def limits(self) -> dict[str, float]:
        """The limits that clients have to keep, by name."""
        names = [one.name for one in fields(self) if one.name.startswith("max_") or one.name == "timeout_s"]
        return {name: getattr(self, name) for name in names}


def read_key(file: Path | None) -> str | None:
    """Returns the key in a file or, without a file, in the environment; None without either.

    Raises:
        ConfigError: the file cannot be read.
    """
    if file is None:
        return os.environ.get(KEY_VARIABLE) or None
    try:
        return file.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"api_key_file: {file} cannot be read as ASCII text ({error}); write one key to it"
        ) from error


def _check_key(key: str) -> None:
    # Headers carry only visible ASCII unchanged. The message never shows the key.
    if len(key) < MIN_KEY_CHARACTERS or not all("!" <= character <= "~" for character in key):
        raise ConfigError(
            f"the API key needs {MIN_KEY_CHARACTERS} or more characters of visible ASCII without spaces; make one with "
            "python -c 'import secrets; print(secrets.token_urlsafe())'"
        )
