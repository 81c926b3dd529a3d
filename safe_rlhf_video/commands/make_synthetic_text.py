"""Write a small text corpus in PKU-SafeRLHF's form whose preferences are known exactly.

    python scripts/make_synthetic_text.py --out DIR --num_pairs 2000 --seed 0
    python scripts/convert.py saferlhf --input DIR/train.jsonl --out DIR/config-train.json.gz

DIR gets train.jsonl, test.jsonl (prompts of held-out combinations) and truth.json.gz (hidden utilities, for evaluation
only, by the video_id that conversion gives a response; and its severity before --severity_noise). The same arguments
give the same bytes.
"""

import argparse
import gzip
import json
import math
from pathlib import Path

from safe_rlhf_video.cli import Parser
from safe_rlhf_video.errors import ConfigError


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
    for name in ("num_pairs", "num_test_pairs", "seed"):
        if getattr(arguments, name) < 0:
            raise ConfigError(f"{name}: expected 0 or more, got {getattr(arguments, name)}")
    noise = arguments.severity_noise
    if not 0 <= noise < math.inf:
        raise ConfigError(f"severity_noise: expected 0 or more, got {noise}")
    try:
        make_synthetic_text(arguments.out, arguments.num_pairs, arguments.num_test_pairs, arguments.seed, noise)
    except OSError as error:
        raise ConfigError(
            f"{arguments.out}: cannot be written ({error.strerror}); give another folder as out"
        ) from error


def make_synthetic_text(out: Path, num_pairs: int, num_test_pairs: int, seed: int, severity_noise: float) -> None:
    from safe_rlhf_video.files import write_whole
    from safe_rlhf_video.worlds.text_world import TEXT_WORLD_VERSION, plan_rows

    truth: dict[str, dict[str, float]] = {}
    for split, count in (("train", num_pairs), ("test", num_test_pairs)):
        lines = []
        for row, utilities in plan_rows(split, count, seed, severity_noise):
            lines.append(f"{json.dumps(row)}\n")
            truth |= utilities
        write_whole(out / f"{split}.jsonl", "".join(lines))
    payload = {"format_version": TEXT_WORLD_VERSION, "seed": seed, "severity_noise": severity_noise, "videos": truth}
    write_whole(out / "truth.json.gz", gzip.compress(json.dumps(payload).encode(), mtime=0))
    print(f"{out}: {num_pairs} train comparisons, {num_test_pairs} test comparisons, {len(truth)} responses")
