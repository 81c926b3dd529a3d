"""Does scripts/evaluate_generator.py find the harmful share that two generators have, and which of them is better?

    python benchmarks/generators.py --model REWARD COST --evaluation evaluation.json --out outputs/generators

Draws 400 prompts of the synthetic world that no training saw, and one clip a prompt by each of two generators:
"careful", whose clips are unsafe with a chance of 20%, and "careless", which follows prompts less and shows an emblem
more often. Then runs the command on their folders and holds its figures against what the clips drawn truly show.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from safe_rlhf_video.cli import Parser, run_script
from safe_rlhf_video.contracts import read_json
from safe_rlhf_video.data.records import HARM_LABELS
from safe_rlhf_video.errors import SafeRLHFVideoError, SampleError
from safe_rlhf_video.evaluation.generator_results import GeneratorEvaluation, RateFigure
from safe_rlhf_video.files import write_whole
from safe_rlhf_video.wording import with_interval
from safe_rlhf_video.worlds.video_world import (
    HARM_OF_EMBLEM,
    UNASKED_EMBLEM_RATE,
    Generator,
    Prompt,
    draw_clip,
    draw_prompt,
    true_utilities,
    write_clip,
)

UNSAFE_SHARE = 0.2
# Half of the prompts ask for an emblem, and an unasked one comes on its own: share = 1 - (1 - c / 2) (1 - unasked).
COMPLIANCE = 2 * (1 - (1 - UNSAFE_SHARE) / (1 - UNASKED_EMBLEM_RATE))
CAREFUL = Generator("careful", fidelity=0.85, emblem_compliance=COMPLIANCE, torn=1.2, lights=1.6, grain=1.2, sparks=1.3)
CARELESS = Generator("careless", fidelity=0.65, emblem_compliance=0.6, torn=1.6, lights=1.3, grain=1.5, sparks=1.6)


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", required=True, metavar="DIR", help="a reward and a cost folder")
    parser.add_argument("--evaluation", type=Path, required=True, help="evaluation.json of these models")
    parser.add_argument("--out", type=Path, default=Path("outputs/generators"))
    parser.add_argument("--num_prompts", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    out = arguments.out

    truth = draw_generations(out, (CAREFUL, CARELESS), arguments.num_prompts, arguments.seed)
    command = ["scripts/evaluate_generator.py", "--model", *arguments.model, "--prompts", out / "prompts.json",
               "--videos", *(f"{name}={out / name}" for name in truth), "--evaluation", arguments.evaluation,
               "--out", out]  # fmt: skip
    if code := subprocess.run([sys.executable, *map(str, command)], check=False).returncode:
        raise SafeRLHFVideoError(f"scripts/evaluate_generator.py ended with exit code {code}; see above")

    result = read_json(GeneratorEvaluation, out / "generator.json", SampleError, "run this again")
    for name, utilities in truth.items():
        true_share = float(np.mean([row["cost"] > 0 for row in utilities]))
        figures = result.generators[name].all
        rates = {"harmful_rate": figures.harmful_rate, "corrected_harmful_rate": figures.corrected_harmful_rate}
        for rate, found in rates.items():
            print(f"{name}: {rate} {_show(found)}, in the clips {true_share:.4f}")
    pairs = list(zip(*truth.values(), strict=True))
    wins = result.comparison.all.win_rate
    for dimension, found, win in (
        ("helpfulness", wins.helpfulness, [first["helpfulness"] - second["helpfulness"] for first, second in pairs]),
        ("harmlessness", wins.harmlessness, [second["cost"] - first["cost"] for first, second in pairs]),
    ):
        hidden = np.mean([0.5 if margin == 0 else margin > 0 for margin in win])
        print(f"careful wins in {dimension}: {_show(found)}, by the hidden order {hidden:.4f}")


def _show(figure: RateFigure) -> str:
    return with_interval(figure.rate, figure.interval)


def draw_generations(
    folder: Path, generators: Sequence[Generator], num_prompts: int, seed: int
) -> dict[str, list[dict[str, float]]]:
    """Write FOLDER/prompts.json and FOLDER/NAME/prompt_id.mp4; returns name -> true utilities of its clips."""
    rng = np.random.default_rng(seed)
    prompts: dict[str, Prompt] = {}
    while len(prompts) < num_prompts:
        prompt = draw_prompt(rng, held_out=True)
        prompts.setdefault(prompt.text, prompt)
    records = [
        {
            "prompt_id": f"{number:04d}",
            "prompt_text": prompt.text,
            "prompt_type": "safety_neutral" if prompt.emblem is None else "safety_critical",
            "prompt_labels": {
                key: prompt.emblem is not None and HARM_OF_EMBLEM[prompt.emblem] == key for key in HARM_LABELS
            },
        }
        for number, prompt in enumerate(prompts.values())
    ]
    write_whole(folder / "prompts.json", json.dumps(records, indent=1) + "\n")
    truth: dict[str, list[dict[str, float]]] = {}
    for generator in generators:
        truth[generator.name] = []
        for record, prompt in zip(records, prompts.values(), strict=True):
            clip = draw_clip(rng, prompt, generator, allow_held_out=True)
            write_clip((folder / generator.name / f"{record['prompt_id']}.mp4", clip))
            truth[generator.name].append(true_utilities(prompt, clip))
    return truth


if __name__ == "__main__":
    run_script(main)
