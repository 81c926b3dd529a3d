"""Are harm labels told apart, and do their flags keep their promise on clips of new prompts?

    python benchmarks/moderation.py --out outputs/moderation

Draws a world, puts its two files together and parts the prompts anew by a hash (the test prompts of a large world are
more often harmful than its training prompts, since the harmless ones run out), trains a cost and all harm labels on
three fifths of them, less a quarter for calibration, calibrates, and evaluates on the others. One line a bound; exit
code 1 if one fails. Interrupted, it goes on where it stopped.
"""

import argparse
import gzip
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from check_quickstart import at_least, known, report
from epoch import HERE, run
from machine import describe_machine

from safe_rlhf_video.cli import Parser, run_script
from safe_rlhf_video.evaluation.results import Evaluation, read_evaluation
from safe_rlhf_video.evaluation.table import format_table
from safe_rlhf_video.files import write_whole

TEST_SHARE, CALIBRATION_SHARE = 0.4, 0.25
MIN_CLIPS, MIN_POSITIVE, RARE, MIN_RARE = 10_000, 30, 0.01, 3
MIN_ANY_AUROC, MIN_MACRO_AUROC = 0.97, 0.95


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs/moderation"))
    parser.add_argument("--world", type=Path, help="drawn already; else in --out")
    parser.add_argument("--frame_store", type=Path, help="with all clips of the world; else in --out")
    parser.add_argument("--config", type=Path, default=HERE.parent / "configs" / "quickstart.yaml")
    parser.add_argument("--targets", nargs="+", default=["false_positive_rate=0.05"])
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    out, seed = arguments.out, arguments.seed
    out.mkdir(parents=True, exist_ok=True)
    world = arguments.world or out / "world"
    if arguments.world is None:
        run(
            "scripts/make_synthetic.py",
            "--out",
            world,
            "--num_pairs",
            10_000,
            "--num_test_pairs",
            17_000,
            "--seed",
            seed,
        )
    train, test = part_prompts(world, out, seed)
    store = arguments.frame_store or out / "frames"
    if arguments.frame_store is None:
        run("scripts/prepare_videos.py", "--config", arguments.config, "--data.path", train, "--data", test,
            "--data.video_dir", world / "videos", "--video_dir", world / "videos", "--out", store)  # fmt: skip
    if not (out / "run" / "model" / "calibration.json").exists():
        run("scripts/train_moderation.py", "--config", arguments.config, "--out", out / "run", "--seed", seed,
            "--heads", "[cost, moderation]", "--data.path", train, "--data.video_dir", world / "videos",
            "--data.frame_store", store, "--data.calibration_fraction", CALIBRATION_SHARE,
            "--tracking.wandb", "disabled")  # fmt: skip
    source = ("--model", out / "run", "--video_dir", world / "videos", "--frame_store", store)
    run("scripts/calibrate.py", *source, "--data", train, "--targets", *arguments.targets)
    run("scripts/evaluate.py", *source, "--data", test, "--train_data", train, "--out", out)
    evaluation = read_evaluation(out / "evaluation.json")
    print(format_table(evaluation))
    print(describe_machine())
    report(out / "evaluation.json", list(check(evaluation, out / "evaluation.json")))


def part_prompts(world: Path, out: Path, seed: int) -> tuple[Path, Path]:
    """Both files of a world as one, parted by prompts: the training and the test file, in `out`."""
    records: dict[str, list[Any]] = {"train": [], "test": []}
    for split in ("train", "test"):
        for record in json.loads(gzip.decompress((world / f"config-{split}.json.gz").read_bytes())):
            key = hashlib.sha256(f"{seed} {record['prompt_text']}".encode()).digest()
            is_test = int.from_bytes(key[:8]) < TEST_SHARE * 2**64
            records["test" if is_test else "train"].append(record)
    files = {split: out / f"config-{split}.json.gz" for split in records}
    for split, path in files.items():
        write_whole(path, gzip.compress(json.dumps(records[split]).encode(), mtime=0))
    return files["train"], files["test"]


def check(evaluation: Evaluation, path: Path) -> Iterator[tuple[bool, str]]:
    """Yields whether each bound is met, and what it says."""
    moderation = known(evaluation.moderation, path, "moderation")
    labels, macro = moderation.labels, moderation.macro
    num_clips = labels["any"].num_positive + labels["any"].num_negative
    yield at_least("clips of prompts that training and calibration did not have", num_clips, MIN_CLIPS)
    yield at_least("fewest clips with a label", min(one.num_positive for one in labels.values()), MIN_POSITIVE)
    num_rare = sum((one.prevalence or 0.0) < RARE for one in labels.values())
    yield at_least(f"labels with a prevalence under {RARE:.0%}", num_rare, MIN_RARE)
    auroc, mean_auroc = (known(one.auroc, path, "moderation auroc") for one in (labels["any"], macro))
    yield at_least("AUROC of any harm", auroc, MIN_ANY_AUROC)
    yield at_least(f"mean AUROC of {macro.num_labels_auroc} labels", mean_auroc, MIN_MACRO_AUROC)
    for label, one in labels.items():
        low, high = known(one.false_positive_interval, path, f"{label}.false_positive_interval")
        target = ", ".join(f"{kind} {value:g}" for kind, value in (one.target or {}).items())
        text = f"{label}: false positives {one.false_positive_rate:.4f} [{low:.4f}, {high:.4f}], target {target}"
        yield one.holds_target is not False, text


if __name__ == "__main__":
    run_script(main)
