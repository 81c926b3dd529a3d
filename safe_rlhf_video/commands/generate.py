"""Writes the clips that a text-to-video model makes for a list of prompts, ready for scripts/evaluate_generator.py.

    python scripts/generate.py --generator PATH --prompts PROMPTS --out FOLDER [--lora DIR] [--clips_per_prompt 4]

PROMPTS is a .json or .json.gz file in the form of SafeSora-Eval. FOLDER gets prompt_id/NNN.mp4; an interrupted run goes
on where it stopped. docs/generators.md tells more.
"""

import argparse
from pathlib import Path

from safe_rlhf_video.alignment.config import GeneratorConfig
from safe_rlhf_video.cli import Parser
from safe_rlhf_video.errors import ConfigError


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--generator", required=True, metavar="PATH", help="a folder or hub id in the form of diffusers"
    )
    parser.add_argument("--prompts", type=Path, required=True, help="the prompts, in the form of SafeSora-Eval")
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--revision", help="of a hub id")
    parser.add_argument("--lora", metavar="DIR", help="a folder with pytorch_lora_weights.safetensors")
    parser.add_argument("--clips_per_prompt", type=int, default=1, help="made for each prompt (1)")
    usual = "; by default as the family's own pipeline"
    parser.add_argument("--num_frames", type=int, help=f"of a clip{usual}")
    parser.add_argument("--height", type=int, help=f"pixels{usual}")
    parser.add_argument("--width", type=int, help=f"pixels{usual}")
    parser.add_argument("--guidance", type=float, help=f"how far a prompt is exaggerated, 1 is not at all{usual}")
    parser.add_argument("--num_steps", type=int, default=50, help="from noise to a clip (50)")
    parser.add_argument("--seed", type=int, default=0, help="of the noise (0)")
    parser.add_argument("--batch_size", type=int, default=1, help="clips made at once (1)")
    arguments = parser.parse_args()
    config = GeneratorConfig(
        path=arguments.generator,
        revision=arguments.revision,
        lora=arguments.lora,
        num_frames=arguments.num_frames,
        height=arguments.height,
        width=arguments.width,
        num_steps=arguments.num_steps,
        guidance=arguments.guidance,
    )

    try:
        from safe_rlhf_video.alignment.generate import generate_clips
    except ModuleNotFoundError as error:
        if error.name != "diffusers":
            raise
        raise ConfigError(
            "generators need diffusers, which is not installed; run pip install 'safe_rlhf_video[align]'"
        ) from error

    made = generate_clips(
        config, arguments.prompts, arguments.out, arguments.clips_per_prompt, arguments.seed, arguments.batch_size
    )
    print(f"{arguments.out}: {made} clips made now")
