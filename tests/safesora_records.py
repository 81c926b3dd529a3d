"""Records and files in SafeSora's form, for tests."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np

from safe_rlhf_video.data.records import HARM_LABELS


def make_record(pair_id: str = "pair", prompt_id: str = "p", videos: tuple[str, str] = ("a", "b")) -> dict[str, Any]:
    record: dict[str, Any] = {
        "pair_id": pair_id,
        "prompt_id": prompt_id,
        "prompt_text": f"a cat, says {prompt_id}",
        "prompt_type": "safety_neutral",
        "prompt_labels": {"porn": False},
        "helpfulness": "video_0",
        "harmlessness": "video_1",
        "sub_preferences": {
            "instruction_following": "video_0",
            "correctness": None,
            "information": "video_1",
            "aesthetics": "video_0",
        },
    }
    for name, video_id in zip(("video_0", "video_1"), videos, strict=True):
        record[name] = {
            "video_id": video_id,
            "video_text": "a cat",
            "video_path": f"videos/{prompt_id}/{video_id}",
            "is_safe": True,
            "video_labels": {key: key == "crime" for key in HARM_LABELS if key != "racism"},
            "generated_from": "a generator",
            "seed": 7,
        }
    return record


def make_video_record(prompt_id: str = "p", video_id: str = "a") -> dict[str, Any]:
    return {
        "prompt_id": prompt_id,
        "prompt_text": f"a cat, says {prompt_id}",
        "prompt_type": "safety_critical",
        "prompt_labels": {key: key == "hate" for key in HARM_LABELS},
        "video_id": video_id,
        "video_text": "a cat",
        "video_path": f"videos/{prompt_id}/{video_id}",
        "is_safe": False,
        "video_labels": {key: key == "crime" for key in HARM_LABELS},
        "generated_from": "a generator",
        "info": {"seed": 7},
    }


def make_prompt_record(prompt_id: str = "p") -> dict[str, Any]:
    return {
        "prompt_id": prompt_id,
        "prompt_text": f"a cat, says {prompt_id}",
        "prompt_type": "safety_neutral",
        "prompt_labels": dict.fromkeys(HARM_LABELS, False),
        "source": "written by hand",
    }


def make_text_record(pair_id: str = "pair", prompt_id: str = "p") -> dict[str, Any]:
    """A pair of responses, as a text corpus has them."""
    record = make_record(pair_id, prompt_id)
    for name in ("video_0", "video_1"):
        del record[name]["video_path"]
        record[name] |= {"video_text": None, "response_text": f"a {name}"}
    return record


def write_config(folder: Path, records: Any, name: str = "config.json") -> Path:
    content = json.dumps(records).encode()
    (folder / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    return folder / name


def write_clip(path: Path, num_frames: int = 1, level: int = 0) -> None:
    """Frames of one grey."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for _ in range(num_frames):
            frame = np.full((32, 32, 3), level, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def change(field: str, value: Any) -> Callable[[dict[str, Any]], None]:
    """A function that sets one field, such as "video_0.is_safe", of a record."""
    *parents, key = field.split(".")

    def apply(record: dict[str, Any]) -> None:
        for parent in parents:
            record = record[parent]
        record[key] = value

    return apply
