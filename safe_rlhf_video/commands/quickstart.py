"""Runs the main job from end to end: make, audit and decode a world, train a reward and a cost, evaluate, choose.

    make quickstart

Every step is one of this project's commands, printed before it runs; run the same again after an interruption.
"""

import argparse
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from safe_rlhf_video.cli import Parser
from safe_rlhf_video.errors import SafeRLHFVideoError
from safe_rlhf_video.files import write_whole

CONFIG = "configs/quickstart.yaml"
SEED = 0


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs/quickstart"))
    parser.add_argument(
        "--started", type=float, default=time.time(), help="when the clock began, in seconds since 1970"
    )
    arguments = parser.parse_args()
    out, data = arguments.out, arguments.out / "data"

    run("1. Draw a world of videos and noisy comparisons", "python", "scripts/make_synthetic.py",
        "--out", data, "--num_pairs", 2000, "--num_test_pairs", 3200, "--seed", SEED)  # fmt: skip
    splits = [data / f"config-{split}.json.gz" for split in ("train", "test")]
    run("2. Audit the labels: what is the most that any model can reach?", "python", "scripts/audit.py",
        "--data", *splits, "--out", out / "audit")  # fmt: skip
    run("3. Decode every clip once, for all runs below", "python", "scripts/prepare_videos.py",
        "--config", CONFIG, "--data.path", splits[0], "--data", splits[1], "--out", out / "frames")  # fmt: skip
    for head, what in (("reward", "4. Train a reward: which clip is more helpful?"),
                       ("cost", "5. Train a cost: which clip is more harmful, and which one is unsafe?")):  # fmt: skip
        train(what, head, out, out / head)
    for head in ("reward", "cost"):
        train(f"6. Control: the same {head} on a backbone that was never trained", head, out,
              out / "random_backbone" / head, "--model.backbone.initialization", "random")  # fmt: skip
    run("7. Evaluate on prompts that no training saw", "python", "scripts/evaluate.py",
        "--model", out / "reward", out / "cost", "--data", splits[1], "--frame_store", out / "frames",
        "--train_data", splits[0],
        "--random_backbone", out / "random_backbone/reward", out / "random_backbone/cost", "--out", out)  # fmt: skip

    run("8. Draw it as a page to look at", "python", "scripts/report.py", "--evaluation", out,
        "--run", out / "reward", out / "cost", "--out", out / "report.html")  # fmt: skip

    pair = show_pair(out, data)
    seconds = round(time.time() - arguments.started, 1)
    summary = json.loads((out / "evaluation.json").read_text()) | {"pair": pair, "seconds": seconds}
    write_whole(out / "summary.json", json.dumps(summary, indent=2, allow_nan=False) + "\n")
    print(f"\nwrote {out / 'summary.json'} and {out / 'pair.png'}; {seconds:.0f} s in all")
    print(f"open {out / 'report.html'} in a browser: figures, plots, and the pairs worth looking at")


def train(what: str, head: str, out: Path, run_folder: Path, *overrides: str) -> None:
    run(what, "deepspeed", f"scripts/train_{head}.py", "--config", CONFIG, "--heads", f"[{head}]", "--out", run_folder,
        "--data.path", out / "data", "--data.frame_store", out / "frames", "--seed", SEED, *overrides)  # fmt: skip


def run(what: str, *command: object) -> None:
    """Prints what a command is for, then runs it as a user would."""
    words = [str(word) for word in command]
    print(f"\n{what}\n$ {shlex.join(words)}", flush=True)
    if words[0] == "python":
        words[0] = sys.executable
    elif words[0] == "deepspeed":
        words[0] = str(Path(sys.executable).with_name("deepspeed"))
    code = subprocess.run(words, check=False).returncode
    if code:
        raise SafeRLHFVideoError(f"this step ended with exit code {code}; see above")


def show_pair(out: Path, data: Path) -> dict[str, Any]:
    """Scores the pair on which the price of cost matters most, in Python as a user would."""
    from safe_rlhf_video import PairDataset, Scorer
    from safe_rlhf_video.data.records import PairSample
    from safe_rlhf_video.lagrangian import lagrangian_score

    dataset = PairDataset.load(data / "config-test.json.gz")
    rows = map(json.loads, (out / "scores.jsonl").read_text().splitlines()[1:])
    scores = {row["key"]: row for row in rows}

    def disagreement(pair: PairSample) -> float:
        first, second = (scores[video.name] for video in (pair.video_0, pair.video_1))
        free, priced = (
            lagrangian_score(first["reward"], first["cost"], price)
            - lagrangian_score(second["reward"], second["cost"], price)
            for price in (0.0, 5.0)
        )
        return min(free, -priced)  # how clearly v1 wins when cost is free and loses when it is priced

    pair = max(dataset.pairs, key=disagreement)
    if disagreement(pair) <= 0:
        raise SafeRLHFVideoError(
            "there is no test pair that a lambda of 0 and one of 5 judge differently: the models see no video that is "
            "more helpful and more harmful than another"
        )
    v1, v2 = (dataset.video_file(video) for video in (pair.video_0, pair.video_1))
    with Scorer.from_pretrained(out / "reward", out / "cost") as scorer:
        judged = {price: scorer.score_pair(pair.prompt_text, v1, v2, lagrange_multiplier=price) for price in (0.0, 5.0)}
        print(f"\n9. Choose between two generations for {pair.prompt_text!r}\n   v1 {v1}\n   v2 {v2}")
        for price, result in judged.items():
            print(f"   lambda = {price:g}: {result.reason}")
        draw_pair(scorer, (v1, v2), out / "pair.png")
    shown = {"prompt": pair.prompt_text, "v1": str(v1), "v2": str(v2)}
    return shown | {f"lambda_{price:g}": result.to_dict() for price, result in judged.items()}


def draw_pair(scorer: Any, paths: tuple[Path, Path], out: Path) -> None:
    """Draws the pair: a row for each clip, with the frames that the model saw, enlarged."""
    import numpy as np
    from PIL import Image

    rows = [np.concatenate(list(video.frames), axis=1) for video in scorer.read(paths)]
    picture = Image.fromarray(np.concatenate(rows))
    picture.resize((picture.width * 4, picture.height * 4), Image.Resampling.NEAREST).save(out)
