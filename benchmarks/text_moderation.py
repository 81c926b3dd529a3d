"""How well does a text moderation model tell categories and severities, on a synthetic corpus whose truth is known?

    python benchmarks/text_moderation.py --model outputs/text/moderation --world outputs/text

--world is a folder of make_synthetic_text.py with its test split converted to config-test.json.gz.
"""

import argparse
import gzip
import json
from pathlib import Path

import numpy as np
from sklearn.metrics import average_precision_score, cohen_kappa_score, roc_auc_score

from safe_rlhf_video.cli import Parser, run_script
from safe_rlhf_video.data.datasets import PairDataset
from safe_rlhf_video.data.preferences import harm_signs
from safe_rlhf_video.heads import HARM_HEADS, TEXT_HARM_HEADS
from safe_rlhf_video.kinds import ordinal
from safe_rlhf_video.kinds.targets import classes_of, label_columns
from safe_rlhf_video.responses import TextResponse
from safe_rlhf_video.scoring.scorer import Scorer
from safe_rlhf_video.worlds.text_world import severity_chances

SEVERITY = "severity"


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a run or model folder with all heads of text_moderation")
    parser.add_argument("--world", type=Path, required=True)
    arguments = parser.parse_args()
    dataset = PairDataset.load(arguments.world / "config-test.json.gz")
    truth = json.loads(gzip.decompress((arguments.world / "truth.json.gz").read_bytes()))
    videos = dataset.videos
    texts = [TextResponse(str(video.response_text)) for video in videos]
    with Scorer.from_pretrained(arguments.model) as scorer:
        rows = list(scorer.iterate([video.prompt_text for video in videos], texts))
        thresholds = scorer.thresholds[SEVERITY]
        weights = scorer.record.training.class_weights[SEVERITY]
    signs = np.stack([harm_signs([], [video])[video.prompt_id, video.video_id] for video in videos])
    print(f"{len(videos)} texts of {dataset.num_prompts} prompts")
    areas, precisions = [], []
    for head in (HARM_HEADS[0], *TEXT_HARM_HEADS):
        applies = signs[:, label_columns(head).start] > 0
        scores = [row[head] for row in rows]
        area, precision = roc_auc_score(applies, scores), average_precision_score(applies, scores)
        print(f"{head}: AUROC {area:.4f}, average precision {precision:.4f}, {applies.sum()} positives")
        if head in TEXT_HARM_HEADS:
            areas.append(area)
            precisions.append(precision)
    print(f"the 19 categories: mean AUROC {np.mean(areas):.4f}, mean average precision {np.mean(precisions):.4f}")

    labels = signs[:, label_columns(SEVERITY)].argmax(1)
    true = np.array([int(truth["videos"][video.video_id]["severity"]) for video in videos])
    found = ordinal.probabilities(np.array([row[SEVERITY] for row in rows]), thresholds, weights)
    likeliest = found.argmax(1)
    print(f"severity: thresholds {np.round(thresholds, 2).tolist()}, class weights {np.round(weights, 2).tolist()}")
    for name, reference in (("the labels", labels), ("the hidden levels", true)):
        print(
            f"  likeliest level against {name}: accuracy {np.mean(likeliest == reference):.4f}, quadratic-weighted "
            f"kappa {cohen_kappa_score(likeliest, reference, weights='quadratic'):.4f}"
        )
    print(
        f"  hidden levels against the labels: accuracy {np.mean(true == labels):.4f}, quadratic-weighted kappa "
        f"{cohen_kappa_score(true, labels, weights='quadratic'):.4f}"
    )
    if noise := truth["severity_noise"]:
        chances = np.array([severity_chances(level, noise) for level in true])
        print(f"  mean |predicted - true probability| of a level: {np.abs(found - chances).mean():.4f}")
        own = np.arange(len(labels)), labels
        print(
            f"  log loss {-np.log(found[own]).mean():.4f}, of the true probabilities {-np.log(chances[own]).mean():.4f}"
        )
        for level, severity in enumerate(classes_of(SEVERITY)):
            mean, wanted = found[true == level].mean(0), severity_chances(level, noise)
            print(f"  {severity}: predicted {np.round(mean, 3).tolist()}, true {np.round(wanted, 3).tolist()}")


if __name__ == "__main__":
    run_script(main)
