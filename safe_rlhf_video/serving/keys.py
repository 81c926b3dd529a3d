"""Reads the keys that clients send, and finds whose key a request shows."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from safe_rlhf_video.errors import ConfigError
from safe_rlhf_video.files import require_path
from safe_rlhf_video.serving.settings import ServerSettings, check_key

_NAME = re.compile(r"[A-Za-z0-9._-]{1,40}")
# Anybody's to read or write: what a key file must not be.
_OTHERS_MODE = 0o006


class KeyRing:
    """The keys of the settings, each with the name of its client; not needed where there is none.

    Raises:
        ConfigError: the key file cannot be read, holds no key, or a line of it is wrong.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self._file = settings.api_key_file
        # By hash: the time that a look-up takes says nothing about the keys.
        self._names: dict[bytes, str] = {}
        if settings.api_key is not None:
            self._names = {_hash(settings.api_key): "key"}
        self.reload()

    def __len__(self) -> int:
        return len(self._names)

    @property
    def is_needed(self) -> bool:
        """Whether requests have to show a key."""
        return bool(self._names)

    @property
    def is_exposed(self) -> bool:
        """Whether every user of this machine can read or write the key file."""
        return self._file is not None and bool(self._file.stat().st_mode & _OTHERS_MODE)

    def find(self, shown: str) -> str | None:
        """Returns the name of the client whose key this is, or None."""
        return self._names.get(_hash(shown))

    def reload(self) -> None:
        """Reads the key file again; after an error the keys are what they were."""
        if self._file is not None:
            self._names = _read_keys(self._file)


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()


def _read_keys(file: Path) -> dict[bytes, str]:
    require_path(file, ConfigError, "write a key to a file, for api_key_file")
    try:
        lines = file.read_text(encoding="ascii").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"api_key_file: {file} cannot be read as ASCII text ({error}); write a key to it") from error
    names: dict[bytes, str] = {}
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if words and not words[0].startswith("#"):
            names |= _read_line(f"api_key_file: {file}: line {number}", words, number, names)
    if not names:
        raise ConfigError(f"api_key_file: {file} holds no key; write one a line, with a name behind it if you like")
    return names


def _read_line(where: str, words: list[str], number: int, before: dict[bytes, str]) -> dict[bytes, str]:
    """One key and its name; messages never show the key."""
    key, name = words[0], words[1] if len(words) > 1 else f"key-{number}"
    if len(words) > 2 or not _NAME.fullmatch(name):
        raise ConfigError(f"{where}: expected KEY or KEY NAME, the name of 1 to 40 letters, digits, '.', '_' or '-'")
    check_key(key, where)
    if _hash(key) in before or name in before.values():
        raise ConfigError(f"{where}: the key or the name stands in a line before; give each client its own")
    return {_hash(key): name}
