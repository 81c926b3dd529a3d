"""What a server can be told, checked before anything is loaded."""

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


@dataclass(frozen=True)
class ServerSettings:
    """How a server runs, and what it allows.

    Attributes:
        model: model folders, a reward and a cost, say.
        host: the address to listen at; any but this machine's own needs a key.
        port: 0 takes any that is free.
        video_root: the folder that paths in requests are relative to; without one, they are refused.
        api_key: what clients have to show; None asks for none.
        backbone: the backbone's folder, if it lies elsewhere than in training.
        device: "auto" takes CUDA where there is one.
        max_body_mb: of a request, in 10^6 bytes.
        max_clip_seconds: a clip that lasts longer is refused.
        max_videos: of one request.
        max_prompt_chars: of a prompt.
        queue_size: requests in work or waiting; one more is answered with 429.
        timeout_s: seconds from a request to its answer, receiving it included, and that decoding one clip may take.
        shutdown_s: seconds that are left to what is in work when the server is ended.
        batch_size: clips scored at once.
        batch_wait_ms: how long a clip waits for others to be scored with.
        workers: decoding processes.
        decode_memory_mb: what each of them may take for a clip, in 10^6 bytes.

    Raises:
        ConfigError: a value is wrong, or a key is needed and there is none.
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
            raise ConfigError(f"video_root: {self.video_root} is no folder; give the one that the clips lie in")
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
        """What clients have to keep to, by name."""
        names = [one.name for one in fields(self) if one.name.startswith("max_") or one.name == "timeout_s"]
        return {name: getattr(self, name) for name in names}


def read_key(file: Path | None) -> str | None:
    """The key in a file or, without one, in the environment; None where neither is given.

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
    # Visible ASCII alone stands unchanged in a header. The key itself is never shown.
    if len(key) < MIN_KEY_CHARACTERS or not all("!" <= character <= "~" for character in key):
        raise ConfigError(
            f"the API key needs {MIN_KEY_CHARACTERS} or more characters of visible ASCII without spaces; make one with "
            "python -c 'import secrets; print(secrets.token_urlsafe())'"
        )
