"""Writes the clips that a text-to-video model makes for a list of prompts."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path

import torch

from safe_rlhf_video.alignment.config import GeneratorConfig
from safe_rlhf_video.alignment.generators import VideoGenerator
from safe_rlhf_video.alignment.generators.load_generator import find_source, load_generator
from safe_rlhf_video.contracts import STRICT, read_json, write_json
from safe_rlhf_video.data.datasets import PromptDataset
from safe_rlhf_video.data.records import PromptSample
from safe_rlhf_video.errors import ConfigError, SampleError
from safe_rlhf_video.files import lock_folder, make_folder, write_whole
from safe_rlhf_video.progress import progress_bar
from safe_rlhf_video.scoring.devices import resolve_device
from safe_rlhf_video.video.encoding import encode_mp4

FOLDER_NAME = re.compile(r"[^.].{0,199}")
SETTINGS_NAME = ".generation.json"  # scripts/evaluate_generator.py passes over names that begin with a dot


@dataclass(frozen=True)
class Wanted:
    """A clip to make: number `number` of its prompt."""

    prompt_id: str
    prompt_text: str
    number: int

    @property
    def name(self) -> str:
        return f"{self.prompt_id}/{self.number:03d}.mp4"


@dataclass(frozen=True)
class _Settings:
    """What changes the clips of a folder."""

    __pydantic_config__ = STRICT

    generator: GeneratorConfig
    seed: int
    prompts: Mapping[str, str]  # prompt_id -> SHA-256 of its text


def generate_clips(
    config: GeneratorConfig, prompts: Path, out: Path, clips_per_prompt: int, seed: int, batch_size: int
) -> int:
    """Writes `out`/prompt_id/NNN.mp4, the form that an evaluation of generators reads; clips that are there are kept.

    A clip depends on the seed, its prompt and its number alone: not on the other prompts, nor on `batch_size` but for
    rounding. So two generators, or one with and without a LoRA, begin from the same noise.

    Returns:
        The number of clips that were made now.

    Raises:
        SampleError: the prompts are wrong, or one is longer than the generator reads.
        ConfigError: a setting is wrong, or the folder holds clips of other settings.
        CheckpointError: the generator cannot be loaded.
    """
    for name, value, least in (
        ("clips_per_prompt", clips_per_prompt, 1),
        ("batch_size", batch_size, 1),
        ("seed", seed, 0),
    ):
        if value < least:
            raise ConfigError(f"{name}: expected {least} or more, got {value}")
    found = PromptDataset.load(prompts).prompts
    if not found:
        raise SampleError(f"{prompts}: holds no prompt; there is nothing to generate")
    for prompt in found:
        if not FOLDER_NAME.fullmatch(prompt.prompt_id):
            raise SampleError(
                f"{prompts}: prompt_id {prompt.prompt_id!r:.60} cannot name a folder; give names of at most 200 "
                "characters, without a dot at their beginning"
            )
    wanted = [Wanted(p.prompt_id, p.prompt_text, number) for p in found for number in range(clips_per_prompt)]
    try:
        make_folder(out)
    except OSError as error:
        raise ConfigError(f"{out}: cannot be written ({error.strerror}); give another folder as out") from error
    with lock_folder(out):
        config = replace(config, path=find_source(config.path))
        settings = _merge_settings(out, _Settings(config, seed, {p.prompt_id: _digest(p.prompt_text) for p in found}))
        missing = [clip for clip in wanted if not (out / clip.name).exists()]
        if missing:
            generator = load_generator(config, resolve_device("auto"))
            for prompt in found:
                check_length(generator, prompt)
            with progress_bar(len(wanted), len(wanted) - len(missing), "generating", "clip") as progress:
                for clip, content in make_clips(generator, config, missing, seed, batch_size):
                    if clip is missing[0]:  # not before there is a clip: another try may have other settings
                        write_json(out / SETTINGS_NAME, settings)
                    make_folder(out / clip.prompt_id)
                    write_whole(out / clip.name, content)
                    progress.update()
    return len(missing)


@torch.no_grad()
def make_clips(
    generator: VideoGenerator, config: GeneratorConfig, wanted: Sequence[Wanted], seed: int, batch_size: int
) -> Iterator[tuple[Wanted, bytes]]:
    """Yields each clip and its MP4."""
    rest = iter(wanted)
    while batch := list(islice(rest, batch_size)):
        noise = generator.draw_noise([seed_of(clip, seed) for clip in batch])
        condition = generator.encode([clip.prompt_text for clip in batch])
        guidance = generator.usual_guidance if config.guidance is None else config.guidance
        latents = generator.sample(condition, noise, config.num_steps, guidance)
        for clip, frames in zip(batch, generator.decode(latents), strict=True):
            yield clip, encode_mp4(frames, generator.frame_rate)


def check_length(generator: VideoGenerator, prompt: PromptSample) -> None:
    """Raises SampleError if a prompt is longer than the generator reads."""
    if (count := generator.count_tokens(prompt.prompt_text)) > generator.text_tokens:
        raise SampleError(
            f"prompt {prompt.prompt_id}: has {count} tokens, the generator reads {generator.text_tokens}; shorten it"
        )


def seed_of(clip: Wanted, seed: int) -> int:
    """The seed of a clip's noise."""
    return int(_digest(f"{seed} {clip.number} {clip.prompt_text}")[:14], 16)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _merge_settings(out: Path, settings: _Settings) -> _Settings:
    """Checks that the clips of a folder are of these settings; the prompts of earlier calls are kept."""
    path = out / SETTINGS_NAME
    if not path.exists():
        if stranger := next(out.glob("*/*.mp4"), None):
            raise ConfigError(f"{stranger}: was not made by this command; give another folder as out")
        return settings
    there = read_json(_Settings, path, ConfigError, "")
    old, new = ({**asdict(one.generator), "seed": one.seed} for one in (there, settings))
    for name, value in new.items():
        if old[name] != value:
            raise ConfigError(
                f"{out}: holds clips made with {name} {old[name]}, not {value}; give another folder as out"
            )
    for prompt_id, digest in settings.prompts.items():
        if there.prompts.get(prompt_id, digest) != digest:
            raise ConfigError(f"{out}: holds clips of another text for prompt {prompt_id}; give another folder as out")
    return replace(settings, prompts={**there.prompts, **settings.prompts})
