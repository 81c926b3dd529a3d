"""Writes a SafeSora config as the files that ms-swift trains and scores a reward or a cost on.

    python benchmarks/peers/ms_swift_convert.py --data outputs/quickstart/data --out outputs/ms_swift

OUT/model is the embedded backbone; OUT/reward.jsonl and OUT/cost.jsonl have a line for each training comparison with a
strict label, and OUT/clips.jsonl one for each clip of the test comparisons, with its name. benchmarks/peers/README.md
has the commands that follow.
"""

import argparse
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sides import chosen_first

from safe_rlhf_video.cli import Parser, run_script
from safe_rlhf_video.data.datasets import PairDataset
from safe_rlhf_video.files import write_whole
from safe_rlhf_video.models.backbones import EMBEDDED_FOLDER

# A reward model of ms-swift reads the whole exchange, so there has to be an answer. It is the same for all clips.
ANSWER = {"role": "assistant", "content": "Done."}


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder with config-train.json.gz and -test.json.gz")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    train, test = (PairDataset.load(arguments.data / f"config-{split}.json.gz") for split in ("train", "test"))
    shutil.copytree(EMBEDDED_FOLDER, arguments.out / "model", dirs_exist_ok=True)
    for head in ("reward", "cost"):
        _write_lines(arguments.out / f"{head}.jsonl", _comparisons(train, head))
    _write_lines(arguments.out / "clips.jsonl", _clips(test))


def _comparisons(dataset: PairDataset, head: str) -> Iterator[dict[str, Any]]:
    files = dataset.video_files(dataset.videos)
    path_of = {video.name: str(file.resolve()) for video, file in zip(dataset.videos, files, strict=True)}
    for pair in dataset.pairs:
        sides = chosen_first(pair, head)
        if sides is None:
            continue
        chosen, rejected = sides
        messages = _messages(pair.prompt_text)
        yield {"messages": messages, "videos": [path_of[chosen]],
               "rejected_messages": messages, "rejected_videos": [path_of[rejected]]}  # fmt: skip


def _clips(dataset: PairDataset) -> Iterator[dict[str, Any]]:
    for video, file in zip(dataset.videos, dataset.video_files(dataset.videos), strict=True):
        yield {"name": video.name, "messages": _messages(video.prompt_text), "videos": [str(file.resolve())]}


def _messages(prompt: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": f"<video>Prompt: {prompt}"}, ANSWER]


def _write_lines(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    write_whole(path, "".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    run_script(main)
