"""Does the Lagrangian reward teach a policy what it should? TRL's GRPO in the synthetic world, whose truth is known.

    python benchmarks/grpo.py --model outputs/quickstart/reward outputs/quickstart/cost

A random language model of seven words writes what a clip shows besides its prompt: four words, each of them the asked
emblem (helpful, and harmful), lights (helpful), sparks (harmful), tears or grain (neither is wanted), or nothing. The
world draws it, the models score it, GRPO trains the policy: by the reward alone, at a fixed lambda, and with a lambda
that moves. Prompts are test prompts that ask for an emblem. Written: what the models and the truth say of the clips of
the first and the last steps.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, PrinterCallback, set_seed
from trl import GRPOConfig, GRPOTrainer

from safe_rlhf_video import LagrangianReward
from safe_rlhf_video.cli import Parser, run_script
from safe_rlhf_video.files import write_whole
from safe_rlhf_video.lagrangian import LagrangeMultiplier
from safe_rlhf_video.scoring.scorer import Scorer
from safe_rlhf_video.worlds.video_world import EMBLEMS, FPS, Clip, Prompt, draw_prompt, render, true_utilities

WORDS = ("emblem", "lights", "sparks", "torn", "grain", "plain")
LENGTH = 4
WINDOW = 5  # steps that a figure is the mean of


class World:
    """The generator: prompts and words to frames, and what is true of them, a mean a call."""

    def __init__(self, prompts: Sequence[Prompt], seed: int) -> None:
        self.helpfulness: list[float] = []
        self.unsafe: list[float] = []
        self._prompts = {prompt.text: prompt for prompt in prompts}
        self._rng = np.random.default_rng(seed)

    def make_videos(self, texts: Sequence[str], completions: Sequence[str]) -> list[np.ndarray]:
        prompts = [self._prompts[text] for text in texts]
        clips = [self._clip(prompt, words.split()) for prompt, words in zip(prompts, completions, strict=True)]
        truth = [true_utilities(prompt, clip) for prompt, clip in zip(prompts, clips, strict=True)]
        self.helpfulness.append(float(np.mean([one["helpfulness"] for one in truth])))
        self.unsafe.append(float(np.mean([one["cost"] > 0 for one in truth])))
        return [render(clip) for clip in clips]

    def _clip(self, prompt: Prompt, words: list[str]) -> Clip:
        shown = (prompt.emblem,) if "emblem" in words and prompt.emblem else ()
        others = [str(name) for name in self._rng.choice(list(EMBLEMS), 2 - len(shown))]
        levels = {name: min(3, words.count(name)) for name in ("torn", "lights", "grain", "sparks")}
        seed = int(self._rng.integers(2**31))
        return Clip(prompt.colour, prompt.shape, prompt.motion, prompt.scene, shown, tuple(others), seed=seed, **levels)


def write_policy(folder: Path) -> None:
    vocabulary = {word: number for number, word in enumerate(("<pad>", "<eos>", "video", *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>").save_pretrained(folder)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    special = {"pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(vocabulary), **sizes, **special)).save_pretrained(folder)


def train(scorer: Scorer, steps: int, seed: int, **options: Any) -> dict[str, Any]:
    set_seed(seed)
    rng = np.random.default_rng(seed)
    prompts: list[Prompt] = []
    while len(prompts) < 64:
        prompt = draw_prompt(rng, held_out=True)
        if prompt.emblem is not None:
            prompts.append(prompt)
    world = World(prompts, seed)
    reward = LagrangianReward(scorer, generate=world.make_videos, prompt_column="scene", fps=FPS, **options)
    with tempfile.TemporaryDirectory() as folder:
        write_policy(Path(folder, "policy"))
        trainer = GRPOTrainer(
            model=str(Path(folder, "policy")),
            reward_funcs=reward,
            args=GRPOConfig(
                output_dir=str(Path(folder, "run")),
                max_steps=steps,
                per_device_train_batch_size=64,
                num_generations=8,
                max_completion_length=LENGTH,
                learning_rate=1e-2,
                lr_scheduler_type="constant",
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=True,
                bf16=False,
                seed=seed,
            ),
            train_dataset=Dataset.from_dict(
                {"prompt": ["video"] * len(prompts), "scene": [prompt.text for prompt in prompts]}
            ),
            callbacks=[reward.callback()] if reward.multiplier else [],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    rows = [row for row in trainer.state.log_history if "lagrangian/cost" in row]
    names = ("reward", "cost", "unsafe_rate", "multiplier", "reward_std", "cost_std")
    curves = {name: [row[f"lagrangian/{name}"] for row in rows] for name in names}
    return {**curves, "true_helpfulness": world.helpfulness, "true_unsafe_rate": world.unsafe}


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", required=True, metavar="DIR")
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="all curves, as JSON")
    args = parser.parse_args()
    moving = LagrangeMultiplier(initial=0.1, minimum=0.001, learning_rate=0.5, cost_limit=-1.0, window_size=64)
    runs: dict[str, dict[str, Any]] = {
        "reward alone (lambda = 0)": {"lagrange_multiplier": 0.0},
        "lambda = 1": {"lagrange_multiplier": 1.0},
        "lambda moves, from 0.1": {"multiplier": moving},
    }
    curves = {}
    with Scorer.from_pretrained(*args.model) as scorer:
        for name, options in runs.items():
            curves[name] = train(scorer, args.steps, args.seed, **options)
            print(f"\n{name}: mean of the first {WINDOW} steps -> of the last {WINDOW}")
            for figure, values in curves[name].items():
                print(f"  {figure:18} {np.mean(values[:WINDOW]):7.3f} -> {np.mean(values[-WINDOW:]):7.3f}", flush=True)
    if args.out:
        write_whole(args.out, json.dumps(curves) + "\n")


if __name__ == "__main__":
    run_script(main)
