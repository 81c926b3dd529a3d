"""How well does a reward or cost judge a text-to-video model that it has never seen?

    python benchmarks/leave_one_generator_out.py --data WORLD --out outputs/unseen

WORLD holds config-train.json.gz and config-test.json.gz in SafeSora's format, and the clips. Trains once on all of the
training file, and once without each text-to-video model that made clips of it (`data.leave_out_generators`), evaluates
every run on the test file, and compares it with the first on the same comparisons: those with a clip of the model
that it never saw, and the others, where it has only had fewer labels. Differences have intervals by prompts. Writes
unseen.json and a Markdown table; interrupted, it goes on where it stopped.
"""

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
from epoch import HERE, run
from machine import describe_machine

from safe_rlhf_video.cli import Parser, run_script
from safe_rlhf_video.data.datasets import PairDataset
from safe_rlhf_video.data.labelled_pairs import Scores, preference_margin, select_labelled
from safe_rlhf_video.data.preferences import safety_signs
from safe_rlhf_video.data.records import ALL_DIMENSIONS, PairSample
from safe_rlhf_video.errors import SafeRLHFVideoError
from safe_rlhf_video.evaluation.breakdown import num_unseen
from safe_rlhf_video.files import write_whole
from safe_rlhf_video.heads import HEAD_OF_DIMENSION
from safe_rlhf_video.stats.checks import MIN_COMPARISONS
from safe_rlhf_video.stats.credit import credit
from safe_rlhf_video.stats.intervals import difference_interval

ALL, POOLED = "all", "pooled"
TITLES = {**{name: name.replace("_", " ") for name in ALL_DIMENSIONS}, "cost_sign": "cost's sign, by clip"}


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, metavar="WORLD")
    parser.add_argument("--out", type=Path, default=Path("outputs/unseen"))
    parser.add_argument("--config", type=Path, default=HERE.parent / "configs" / "quickstart.yaml")
    parser.add_argument("--heads", nargs="+", default=["reward", "cost"], help="trained together; a reward or a cost")
    parser.add_argument("--frame_store", type=Path, help="with all clips of both files; made in --out unless given")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    out, heads = arguments.out, arguments.heads
    script = next((head for head in ("reward", "cost") if head in heads), None)
    if script is None:
        raise SafeRLHFVideoError(f"--heads: {' '.join(heads)} has neither a reward nor a cost; add one")

    train, test = (arguments.data / f"config-{split}.json.gz" for split in ("train", "test"))
    train_pairs, pairs = (PairDataset.load(path).pairs for path in (train, test))
    made = {video.generated_from for pair in train_pairs for video in (pair.video_0, pair.video_1)}
    generators = sorted(name for name in made if name)
    if len(generators) < 3:
        raise SafeRLHFVideoError(
            f"{train}: has clips of {len(generators)} text-to-video models; without one of them too few comparisons of "
            "two others are left, give data of three or more"
        )
    if taken := {ALL, POOLED} & set(generators):
        raise SafeRLHFVideoError(
            f"{train}: has a text-to-video model called {taken.pop()!r}, which this needs as a name"
        )
    settings = {
        "config": arguments.config.read_text(encoding="utf-8"),
        "data": str(arguments.data.resolve()),
        "heads": heads,
        "seed": arguments.seed,
    }
    check_settings(out / "settings.json", settings)
    store = arguments.frame_store or out / "frames"
    folder_of = {name: out / name for name in (ALL,)} | {
        name: out / f"without_{quote(name, '')}" for name in generators
    }
    waiting = {name: folder for name, folder in folder_of.items() if not (folder / "evaluation.json").exists()}
    print(f"{len(waiting)} of {len(folder_of)} models are to be trained and evaluated", flush=True)
    if waiting and arguments.frame_store is None:
        run("scripts/prepare_videos.py", "--config", arguments.config, "--data.path", train, "--data", test,
            "--out", store)  # fmt: skip
    for name, folder in waiting.items():
        left_out = [] if name == ALL else [name]
        print(f"training {'on all' if name == ALL else f'without {name}'} (log in {folder / 'log.txt'})", flush=True)
        folder.mkdir(exist_ok=True)
        log = folder / "log.txt"
        run(f"scripts/train_{script}.py", "--config", arguments.config, "--out", folder / "run",
            "--heads", json.dumps(heads), "--data.path", arguments.data, "--data.config_filename", train.name,
            "--data.frame_store", store, "--data.leave_out_generators", json.dumps(left_out),
            "--tracking.wandb", "disabled", "--seed", arguments.seed, log=log)  # fmt: skip
        run("scripts/evaluate.py", "--model", folder / "run", "--data", test, "--frame_store", store, "--out", folder,
            log=log)  # fmt: skip

    scores_of = {name: read_scores(folder / "scores.jsonl") for name, folder in folder_of.items()}
    result = {
        "machine": describe_machine(),
        **{name: settings[name] for name in ("data", "heads", "seed")},
        "num_training_comparisons": {
            ALL: len(train_pairs),
            **{name: sum(not num_unseen(pair, [name]) for pair in train_pairs) for name in generators},
        },
        "figures": judge(pairs, scores_of, generators),
    }
    table = "\n".join(format_markdown(result)) + "\n"
    write_whole(out / "unseen.json", json.dumps(result, indent=1, allow_nan=False) + "\n")
    write_whole(out / "unseen.md", table)
    print(f"\n{table}\nwrote {out / 'unseen.json'} and {out / 'unseen.md'}")


def check_settings(path: Path, settings: Mapping[str, Any]) -> None:
    """Raise SafeRLHFVideoError if the folder holds models of other settings."""
    asked = json.dumps(settings, indent=1) + "\n"
    if path.exists() and path.read_text(encoding="utf-8") != asked:
        raise SafeRLHFVideoError(f"{path.parent} holds models of other settings ({path.name}); take another --out")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, asked)


def read_scores(path: Path) -> dict[str, dict[str, float]]:
    """The scores that an evaluation wrote: name of a clip -> head -> score."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()[1:]]
    return {row.pop("key"): row for row in rows}


def judge(pairs: Sequence[PairSample], scores_of: Mapping[str, Scores], generators: Sequence[str]) -> dict[str, Any]:
    """Every model without a generator against the one that saw all, on the same comparisons.

    Args:
        pairs: the test comparisons.
        scores_of: "all" and name of a generator -> scores of the model without it.

    Returns:
        dimension or "cost_sign" -> generator, and "pooled" over all of them -> `unseen` and `seen`, as `compare_paired`
        returns them, for comparisons with and without a clip of the generator; of the sign, for its clips and others.
    """
    result: dict[str, Any] = {}
    for dimension in (*ALL_DIMENSIONS, "cost_sign"):
        head = "cost" if dimension == "cost_sign" else HEAD_OF_DIMENSION[dimension]
        if head not in next(iter(scores_of[ALL].values())):
            continue
        rows = {}
        for name in generators:
            if dimension == "cost_sign":
                *right, prompts, is_unseen = judge_signs(pairs, scores_of[name], scores_of[ALL], name)
            else:
                labelled = select_labelled(pairs, dimension, None)
                right = [
                    credit(preference_margin(labelled.pairs, scores, head) * labelled.sign)
                    for scores in (scores_of[name], scores_of[ALL])
                ]
                prompts = labelled.prompts
                is_unseen = np.array([num_unseen(pair, [name]) > 0 for pair in labelled.pairs], dtype=bool)
            rows[name] = (*right, prompts, is_unseen)
        rows[POOLED] = tuple(np.concatenate(column) for column in zip(*rows.values(), strict=True))
        result[dimension] = {
            name: {
                part: compare_paired(mine[chosen], others[chosen], prompts[chosen])
                for part, chosen in (("unseen", is_unseen), ("seen", ~is_unseen))
            }
            for name, (mine, others, prompts, is_unseen) in rows.items()
        }
    return result


def judge_signs(
    pairs: Sequence[PairSample], mine: Scores, others: Scores, generator: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """For each clip with a safety label: whether either model's sign is right, its prompt, and whether it is unseen."""
    videos = {video.name: video for pair in pairs for video in (pair.video_0, pair.video_1)}
    signs = {f"{prompt}/{video}": sign for (prompt, video), sign in safety_signs(pairs).items() if sign}
    safe = np.array(list(signs.values()))
    right = [credit(-safe * np.array([scores[name]["cost"] for name in signs]), 0.0) for scores in (mine, others)]
    prompts = np.array([videos[name].prompt_id for name in signs])
    is_unseen = np.array([videos[name].generated_from == generator for name in signs], dtype=bool)
    return right[0], right[1], prompts, is_unseen


def compare_paired(mine: np.ndarray, others: np.ndarray, prompts: np.ndarray) -> dict[str, Any]:
    """Two models' credits on the same (M,) comparisons or clips; figures are null for too few of them."""
    num_prompts = len(np.unique(prompts))
    is_known = len(mine) >= MIN_COMPARISONS
    return {
        "num": len(mine),
        "num_prompts": num_prompts,
        "accuracy": float(mine.mean()) if is_known else None,
        "accuracy_of_all": float(others.mean()) if is_known else None,
        "difference": float(np.mean(mine - others)) if is_known else None,
        "interval": difference_interval(mine - others, prompts) if is_known else None,
    }


def format_markdown(result: Mapping[str, Any]) -> Iterator[str]:
    counts = result["num_training_comparisons"]
    yield (
        "| judged | left out | trained on | with a clip of it | accuracy, never seen | trained on all | difference "
        "[95%] | difference elsewhere [95%] |"
    )
    yield "|---|---|---|---|---|---|---|---|"
    for dimension, by_name in result["figures"].items():
        for name, parts in by_name.items():
            unseen, seen = parts["unseen"], parts["seen"]
            accuracies = [
                "-" if unseen[key] is None else f"{unseen[key]:.4f}" for key in ("accuracy", "accuracy_of_all")
            ]
            cells = [TITLES[dimension], name, str(counts.get(name, "")), str(unseen["num"]), *accuracies]
            yield f"| {' | '.join([*cells, format_difference(unseen), format_difference(seen)])} |"


def format_difference(figures: Mapping[str, Any]) -> str:
    if figures["difference"] is None:
        return "-"
    difference = f"{figures['difference']:+.4f}"
    if figures["interval"] is None:
        return difference
    low, high = figures["interval"]
    return f"{difference} [{low:+.4f}, {high:+.4f}]"


if __name__ == "__main__":
    run_script(main)
