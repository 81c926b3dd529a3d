"""Shows the progress, rate and remaining time of long work."""

from __future__ import annotations

import sys

from tqdm import tqdm


def progress_bar(total: int, done: int, description: str, unit: str) -> tqdm:
    """A bar on standard error; a log file gets a line every 10 seconds. The unit "B" counts bytes, shown in MB."""
    interval = 0.1 if sys.stderr.isatty() else 10.0
    return tqdm(total=total, initial=done, desc=description, unit=unit, unit_scale=unit == "B", mininterval=interval)
