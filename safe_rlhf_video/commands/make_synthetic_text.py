"""Write a small text corpus in PKU-SafeRLHF's form whose preferences are known exactly.

    python scripts/make_synthetic_text.py --out DIR --num_pairs 2000 --seed 0
    python scripts/convert.py saferlhf --input DIR/train.jsonl --out DIR/config-train.json.gz

DIR gets train.jsonl, test.jsonl (prompts of held-out combinations) and truth.json.gz (hidden utilities, for evaluation
only, by the video_id that conversion gives a response; and its severity before --severity_noise). The same arguments
give the same bytes.
"""

import argparse
from pathlib import Path

from safe_rlhf_video.cli import Parser
from safe_rlhf_video.worlds.world_files import write_text_world


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--num_pairs", type=int, default=2000, help="training comparisons")
    parser.add_argument("--num_test_pairs", type=int, default=1000, help="test comparisons, of held-out prompts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--severity_noise", type=float, default=0.0, help="how far people disagree about a severity, in levels"
    )
    arguments = parser.parse_args()
    num_pairs = {"train": arguments.num_pairs, "test": arguments.num_test_pairs}
    num_responses = write_text_world(arguments.out, num_pairs, arguments.seed, arguments.severity_noise)
    shown = ", ".join(f"{count} {split} comparisons" for split, count in num_pairs.items())
    print(f"{arguments.out}: {shown}, {num_responses} responses")
