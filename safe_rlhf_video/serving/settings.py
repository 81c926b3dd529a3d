"""Defines and checks the settings of a server, before anything is loaded."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ModelWrapValidatorHandler, ValidationError, model_validator

from safe_rlhf_video.contracts import STRICT, describe
from safe_rlhf_video.errors import ConfigError
from safe_rlhf_video.files import require_path

KEY_VARIABLE = "SAFE_RLHF_VIDEO_API_KEY"
MIN_KEY_CHARACTERS = 16


class ServerSettings(BaseModel):
    """How a server runs, and what it allows; the descriptions are the help texts of `scripts/serve.py`.

    Raises:
        ConfigError: a value is wrong, or a key is needed and missing.
    """

    model_config = STRICT | ConfigDict(frozen=True)

    model: tuple[str, ...] = Field(min_length=1, description="model folders: a reward, a cost, a moderation folder")
    host: str = Field("127.0.0.1", description="the address to listen at; one that others can reach needs a key")
    port: int = Field(8000, ge=0, le=65535, description="0 takes any free port")
    video_root: Path | None = Field(None, description="the folder of the paths in requests; else they are refused")
    api_key: str | None = Field(None, repr=False, description="what clients send; without it, no key is asked for")
    api_key_file: Path | None = Field(
        None, description=f"holds the keys that clients send, one a line, with a name or without; else {KEY_VARIABLE}"
    )
    access_log: Path | None = Field(None, description="the file that gets a line for each answer; without, none does")
    backbone: str | None = Field(None, description="the backbone's folder, if it has moved since training")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:1")
    max_body_mb: float = Field(64.0, gt=0, description="the size of a request, in 10^6 bytes")
    max_clip_seconds: float = Field(60.0, gt=0, description="the length of a clip")
    max_clip_gigapixels: float = Field(8.0, gt=0, description="pixels of all frames of a clip together, in 10^9")
    max_videos: int = Field(64, ge=1, description="the number of clips in a request")
    max_prompt_chars: int = Field(4096, ge=1, description="the length of a prompt")
    queue_size: int = Field(256, ge=1, description="requests in work or waiting; one more is answered with 429")
    bodies_mb: float = Field(512.0, gt=0, description="bodies of all requests in work together, in 10^6 bytes")
    client_share: float = Field(0.5, gt=0, le=1, description="what one of several keys may have of queue and bodies")
    client_clips_per_minute: int = Field(0, ge=0, description="clips scored for a client in a minute; 0 for any number")
    timeout_s: float = Field(60.0, gt=0, description="seconds for a request, and for decoding a clip; then 503")
    shutdown_s: float = Field(15.0, gt=0, description="seconds that requests in work have when the server is ended")
    batch_size: int = Field(32, ge=1, description="clips scored at once")
    batch_wait_ms: float = Field(5.0, ge=0, le=1000, description="how long a clip waits for others to be scored with")
    workers: int = Field(2, ge=1, description="decoding processes")
    decode_memory_mb: int = Field(2000, ge=1, description="memory of each for a clip, in 10^6 bytes")

    @model_validator(mode="wrap")
    @classmethod
    def _check(cls, values: Any, check: ModelWrapValidatorHandler[Self]) -> Self:
        try:
            settings = check(values)
        except ValidationError as wrong:
            raise ConfigError(describe(wrong, "server")) from wrong
        if settings.video_root is not None:
            require_path(settings.video_root, ConfigError, "give the folder of the clips as video_root")
        if settings.video_root is not None and not settings.video_root.is_dir():
            raise ConfigError(f"video_root: {settings.video_root} is not a folder; give the folder of the clips")
        if settings.bodies_mb * settings.client_share < settings.max_body_mb:
            raise ConfigError(
                f"bodies_mb: a client's share of {settings.bodies_mb * settings.client_share:g} MB is less than one "
                f"body of max_body_mb {settings.max_body_mb:g}; give more"
            )
        if not settings.asks_for_key and not settings.is_loopback:
            raise ConfigError(
                f"host: {settings.host} can be reached from other machines, which needs a key; give --api_key_file or "
                f"{KEY_VARIABLE}, or listen at 127.0.0.1"
            )
        if settings.api_key is not None:
            check_key(settings.api_key, "the API key")
        return settings

    @property
    def asks_for_key(self) -> bool:
        """Whether clients have to show a key."""
        return self.api_key is not None or self.api_key_file is not None

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
        names = [name for name in type(self).model_fields if name.startswith("max_") or name == "timeout_s"]
        return {name: getattr(self, name) for name in names}


def check_key(key: str, name: str) -> None:
    """Raises a ConfigError, which never shows the key, unless headers carry it unchanged and nobody can guess it."""
    if len(key) < MIN_KEY_CHARACTERS or not all("!" <= character <= "~" for character in key):
        raise ConfigError(
            f"{name} needs {MIN_KEY_CHARACTERS} or more characters of visible ASCII without spaces; make one with "
            "python -c 'import secrets; print(secrets.token_urlsafe())'"
        )
