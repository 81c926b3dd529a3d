"""Reads the hidden utilities of a synthetic world, for evaluation only; no training code imports this."""

from __future__ import annotations

import math
import zlib
from pathlib import Path

from safe_rlhf_video.data.records import SUB_DIMENSIONS
from safe_rlhf_video.errors import SampleError
from safe_rlhf_video.files import require_path
from safe_rlhf_video.reading import load_json, open_unpacked

FILE_NAME = "truth.json.gz"


def read_truth(path: Path) -> dict[str, dict[str, float]]:
    """Reads video id -> {dimension: utility in logits, higher is preferred}; a text world has no sub-dimensions.

    Raises:
        SampleError: the file is missing or damaged.
    """
    require_path(path, SampleError)
    try:
        with open_unpacked(path) as file:
            videos = load_json(file.read())["videos"]
        return {
            name: {
                "helpfulness": _finite(true["helpfulness"]),
                "harmlessness": -_finite(true["cost"]),
                **{dimension: _finite(true[dimension]) for dimension in SUB_DIMENSIONS if dimension in true},
            }
            for name, true in videos.items()
        }
    except (OSError, EOFError, zlib.error, ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise SampleError(
            f"{path}: cannot be read as the truth of a synthetic world ({error}); make it again"
        ) from error


def _finite(value: float) -> float:
    if not math.isfinite(value):
        raise ValueError(f"a utility is {value}")
    return float(value)
