"""Write a small world in SafeSora's format whose preferences are known exactly.

    python scripts/make_synthetic.py --out DIR --num_pairs 2000 --seed 0

DIR gets config-train.json.gz, config-test.json.gz, videos/ and truth.json.gz (hidden utilities, for evaluation only).
The same arguments give the same bytes; an interrupted run goes on where it stopped.
"""

import argparse
from pathlib import Path

from safe_rlhf_video.cli import Parser
from safe_rlhf_video.worlds.world_files import write_video_world


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--num_pairs", type=int, default=2000, help="training comparisons")
    parser.add_argument("--num_test_pairs", type=int, default=3200, help="test comparisons, of held-out prompts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, help="processes that draw clips; all cores unless given")
    arguments = parser.parse_args()
    num_pairs = {"train": arguments.num_pairs, "test": arguments.num_test_pairs}
    num_clips = write_video_world(arguments.out, num_pairs, arguments.seed, arguments.workers)
    shown = ", ".join(f"{count} {split} comparisons" for split, count in num_pairs.items())
    print(f"{arguments.out}: {shown}, {num_clips} clips")
