"""Names requests, and writes one line for each answer to the access log: never a prompt, a path or a key."""

from __future__ import annotations

import json
import logging
import logging.handlers
import re
import secrets
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from safe_rlhf_video.errors import ConfigError

REQUEST_ID: ContextVar[str] = ContextVar("request_id", default="-")
_SANE_ID = re.compile(r"[A-Za-z0-9._~:-]{1,64}")
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "CONNECT"})


@dataclass(frozen=True)
class Access:
    """One answered request.

    Attributes:
        id: of the request.
        client: the name of its key; its address where it showed none.
        address: where it came from.
        method: "other" if it is no common one.
        route: as in the metrics.
        status: of the answer; 499 if the client left before.
        seconds: from the head of the request to the end of the answer.
    """

    id: str
    client: str
    address: str
    method: str
    route: str
    status: int
    seconds: float


class _File(logging.handlers.WatchedFileHandler):
    """Counts the lines that cannot be written; logging would print a traceback for each."""

    num_lost = 0

    def handleError(self, record: logging.LogRecord) -> None:
        self.num_lost += 1


class AccessLog:
    """Appends a line of JSON an answer to a file, and opens the file anew if it was moved away.

    Args:
        file: where to; None for nowhere.

    Raises:
        ConfigError: the file cannot be written.
    """

    def __init__(self, file: Path | None) -> None:
        try:
            self._file = None if file is None else _File(file, encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"access_log: {file} cannot be written ({error.strerror}); give another") from error

    @property
    def num_lost(self) -> int:
        """Lines that could not be written."""
        return 0 if self._file is None else self._file.num_lost

    @property
    def is_on(self) -> bool:
        """Whether lines are kept."""
        return self._file is not None

    def write(self, access: Access) -> None:
        """Appends one line; a full disk does not stop the server."""
        if self._file is None:
            return
        method = access.method if access.method in _METHODS else "other"
        values = asdict(access) | {"method": method, "seconds": round(access.seconds, 6)}
        line = json.dumps({"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **values})
        record = logging.LogRecord("access", logging.INFO, "", 0, line, None, None)
        try:
            self._file.emit(record)
        except OSError:  # of opening the file anew
            self._file.handleError(record)


def name_request(asked: str | None) -> str:
    """Returns the id that a client gave its request, if it is sane, else a new one."""
    return asked if asked is not None and _SANE_ID.fullmatch(asked) else secrets.token_hex(8)


class RequestIdFilter(logging.Filter):
    """Adds `request_id` to the records of the log: "-" outside of requests."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Keeps every record."""
        record.request_id = REQUEST_ID.get()
        return True
