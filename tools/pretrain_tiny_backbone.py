"""Trains the embedded backbone: a small Qwen3-VL that sees the synthetic world and reads its prompts.

It learns to match captions to clips (does each named part agree?) and to recognise what a clip shows, by linear probes
on the state that score heads will read. The probes are discarded. It never sees a preference, and no held-out
combination of colour, shape and motion, in a clip or in a caption. docs/tiny_backbone.md has the time and the result.

    python tools/pretrain_tiny_backbone.py --out outputs/pretraining
    cp outputs/pretraining/tiny_backbone/* safe_rlhf_video/assets/tiny_backbone/
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from safe_rlhf_video.cli import Parser, run_script
from safe_rlhf_video.errors import ConfigError
from safe_rlhf_video.video.pool import DecodePool
from safe_rlhf_video.video.sampling import Sampling, Video
from safe_rlhf_video.worlds import video_world as synthetic
from safe_rlhf_video.worlds.video_world import (
    COLOURS,
    EMBLEMS,
    MAX_LEVEL,
    MOTIONS,
    SCENES,
    SHAPES,
    WORLD_VERSION,
    Clip,
    Prompt,
)

SAMPLING = Sampling(num_frames=4, min_pixels=32 * 32, max_pixels=32 * 32, size_multiple=8)
SPECIAL_TOKENS = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
NAMED = {"colour": tuple(COLOURS), "shape": SHAPES, "motion": MOTIONS, "scene": tuple(SCENES)}
LEVELS = ("torn", "lights", "grain", "sparks")
SEED = 0
NUM_UNSEEN = 2000  # clips that are only evaluated on


def draw_clip(rng: np.random.Generator) -> Clip:
    """Draw a clip of any allowed combination, all else uniformly: what generators prefer must not leak in here."""
    while True:
        named = {name: str(rng.choice(values)) for name, values in NAMED.items()}
        if not synthetic.is_held_out(named["colour"], named["shape"], named["motion"]):
            break
    num_emblems = int(rng.choice(3, p=[0.4, 0.45, 0.15]))
    shown = tuple(str(name) for name in rng.choice(tuple(EMBLEMS), 2, replace=False))
    levels = {name: int(rng.integers(MAX_LEVEL + 1)) for name in LEVELS}
    seed = int(rng.integers(2**31))
    return Clip(**named, emblems=shown[:num_emblems], upside_down=shown[num_emblems:], **levels, seed=seed)


def draw_caption(rng: np.random.Generator, clip: Clip) -> Prompt:
    """Draw a prompt that agrees with each named part of the clip two times in three."""
    while True:
        named = {
            name: getattr(clip, name) if rng.random() < 0.67 else str(rng.choice(values))
            for name, values in NAMED.items()
        }
        if not synthetic.is_held_out(named["colour"], named["shape"], named["motion"]):
            break
    emblem = None
    if rng.random() < 0.5:
        emblem = str(rng.choice(clip.emblems if clip.emblems and rng.random() < 0.6 else tuple(EMBLEMS)))
    return Prompt(**named, emblem=emblem, template=int(rng.integers(len(synthetic.TEMPLATES))))


def build_targets(captions: Sequence[Prompt], clips: Sequence[Clip]) -> dict[str, np.ndarray]:
    """Return the classes for the probes, (N,) each; -1 where a probe does not apply."""
    targets: dict[str, list[int]] = {}

    def add(name: str, value: int) -> None:
        targets.setdefault(name, []).append(value)

    for caption, clip in zip(captions, clips, strict=True):
        for name, values in NAMED.items():
            add(f"match/{name}", int(getattr(caption, name) == getattr(clip, name)))
            add(f"read/{name}", values.index(getattr(clip, name)))
        add("match/emblem", -1 if caption.emblem is None else int(caption.emblem in clip.emblems))
        for name in LEVELS:
            add(f"read/{name}", getattr(clip, name))
        for name in EMBLEMS:
            # Not there, upside down, upright.
            add(f"read/{name}", 2 * (name in clip.emblems) + (name in clip.upside_down))
    return {name: np.array(values) for name, values in targets.items()}


def make_clips(folder: Path, count: int) -> tuple[list[Clip], list[Video]]:
    """Write `count` clips as MP4 (kept between runs) and read them back with the package's own decoder."""
    from tqdm import tqdm

    rng = np.random.default_rng(SEED)
    clips = [draw_clip(rng) for _ in range(count)]
    paths = [folder / f"{number // 1000:03d}" / f"{number:06d}.mp4" for number in range(count)]
    with ProcessPoolExecutor() as executor:
        jobs = executor.map(synthetic.write_clip, zip(paths, clips, strict=True), chunksize=64)
        for _ in tqdm(jobs, total=count, desc="writing clips", unit="clip"):
            pass
    with DecodePool(SAMPLING) as pool:
        videos = list(tqdm(pool.iterate(paths), total=count, desc="reading clips", unit="clip"))
    return clips, videos


def write_tokenizer(folder: Path) -> None:
    """Write a byte-level BPE of 512 tokens, trained on the world's prompts: it can spell any text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    rng = np.random.default_rng(SEED)
    texts = [draw_caption(rng, draw_clip(rng)).text for _ in range(4000)]
    texts += ["user\n", "assistant\n", "Prompt: "] * 400 + [f"<{tenth / 10:.1f} seconds>" for tenth in range(400)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=["<|endoftext|>", *SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL_TOKENS),
    )
    wrapped.save_pretrained(folder)


def build_model(folder: Path):
    """Build a Qwen3-VL of 1.6 M parameters: 4 frames of 32 x 32 are 2 x 16 video tokens."""
    from transformers import AutoTokenizer, Qwen3VLConfig, Qwen3VLForConditionalGeneration

    tokenizer = AutoTokenizer.from_pretrained(folder)
    token_id = tokenizer.convert_tokens_to_ids
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "max_position_embeddings": 4096,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [6, 5, 5],
                "mrope_interleaved": True,
            },
        },
        vision_config={
            "depth": 4,
            "hidden_size": 96,
            "intermediate_size": 288,
            "num_heads": 4,
            "patch_size": 4,
            "temporal_patch_size": 2,
            "spatial_merge_size": 2,
            "out_hidden_size": 128,
            "num_position_embeddings": 64,
            "deepstack_visual_indexes": [1],
        },
        image_token_id=token_id("<|image_pad|>"),
        video_token_id=token_id("<|video_pad|>"),
        vision_start_token_id=token_id("<|vision_start|>"),
        vision_end_token_id=token_id("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    return Qwen3VLForConditionalGeneration(config)


def write_preprocessor(folder: Path) -> None:
    """Write the two processor files that a downloaded Qwen3-VL folder has."""
    fields = {
        "do_rescale": True,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "patch_size": 4,
        "temporal_patch_size": 2,
        "merge_size": 2,
    }
    image = {**fields, "size": {"shortest_edge": 1024, "longest_edge": 1024}}
    video = {**fields, "size": {"shortest_edge": 4096, "longest_edge": 4096}}
    image |= {"image_processor_type": "Qwen2VLImageProcessorFast", "processor_class": "Qwen3VLProcessor"}
    video |= {"video_processor_type": "Qwen3VLVideoProcessor", "processor_class": "Qwen3VLProcessor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(image, indent=2) + "\n")
    (folder / "video_preprocessor_config.json").write_text(json.dumps(video, indent=2) + "\n")


@dataclass
class Probed:
    """The model in training, and a linear probe for each target on the state that score heads will read."""

    model: Any
    backbone: Any
    probes: Any

    def __call__(self, captions: Sequence[Prompt], videos: Sequence[Video]) -> dict[str, Any]:
        """Return the logits of every target, (N, classes)."""
        from safe_rlhf_video.models.inputs import build_inputs
        from safe_rlhf_video.models.pooling import last_attended

        inputs = build_inputs(self.backbone, [caption.text for caption in captions], videos, "cpu")
        states = self.model.model(**inputs, use_cache=False).last_hidden_state
        pooled = last_attended(states, inputs["attention_mask"])
        return {name.replace("__", "/"): probe(pooled) for name, probe in self.probes.items()}


def build_probed(folder: Path, model: Any, clips: Sequence[Clip]) -> Probed:
    """Read the tokenizer and processor files in `folder`; `clips` show how many classes each target has."""
    import torch
    from transformers import AutoTokenizer

    from safe_rlhf_video.models.backbones import Backbone
    from safe_rlhf_video.models.config import BackboneConfig
    from safe_rlhf_video.models.families.qwen3_vl import Qwen3VL

    processor = json.loads((folder / "video_preprocessor_config.json").read_text())
    backbone = Backbone(
        tokenizer=AutoTokenizer.from_pretrained(folder),
        family=Qwen3VL.build(processor, model.config),
        model_config=model.config,
        max_tokens=4096,
        model=model.model,
        config=BackboneConfig(path=str(folder)),
        fingerprint="",
        hidden_size=128,
        attention="sdpa",
        liger=False,
    )
    rng = np.random.default_rng(SEED + 1)
    targets = build_targets([draw_caption(rng, clip) for clip in clips], clips)
    probes = {name.replace("/", "__"): torch.nn.Linear(128, int(one.max()) + 1) for name, one in targets.items()}
    return Probed(model, backbone, torch.nn.ModuleDict(probes))


def pretrain(out: Path, num_clips: int, num_steps: int, batch_size: int, learning_rate: float) -> None:
    """Train, evaluate on unseen clips and write the checkpoint folder."""
    import torch

    settings = {
        "world_version": WORLD_VERSION,
        "num_clips": num_clips,
        "num_steps": num_steps,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
    }
    state_path = out / "pretraining_state.pt"
    saved = torch.load(state_path, weights_only=True) if state_path.exists() else None
    if saved is not None:
        check_settings(state_path, saved.get("settings"), settings)
    torch.manual_seed(SEED)
    folder = out / "tiny_backbone"
    folder.mkdir(parents=True, exist_ok=True)
    write_tokenizer(folder)
    write_preprocessor(folder)
    model = build_model(folder)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{num_parameters / 1e6:.2f} M parameters, {num_steps} steps of {batch_size} clips")

    clips, videos = make_clips(out / f"clips_v{WORLD_VERSION}", num_clips + NUM_UNSEEN)
    probed = build_probed(folder, model, clips)
    started = time.time()
    train(probed, clips[:-NUM_UNSEEN], videos[:-NUM_UNSEEN], settings, state_path, saved)
    report = evaluate(probed, clips[-NUM_UNSEEN:], videos[-NUM_UNSEEN:])
    report |= {"parameters": num_parameters, "steps": num_steps, "seconds": round(time.time() - started)}
    (out / "pretraining.json").write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))
    model.to(torch.bfloat16).save_pretrained(folder)
    print(f"wrote {folder}")


def train(
    probed: Probed,
    clips: Sequence[Clip],
    videos: Sequence[Video],
    settings: dict[str, Any],
    state_path: Path,
    saved: dict[str, Any] | None,
) -> None:
    """Minimize the sum of the probes' cross-entropies; continue from `saved`, and save to `state_path` as it goes."""
    import torch
    from tqdm import trange

    parameters = [*probed.model.parameters(), *probed.probes.parameters()]
    peak, num_steps = settings["learning_rate"], settings["num_steps"]
    optimizer = torch.optim.AdamW(parameters, lr=peak, betas=(0.9, 0.98), weight_decay=0.02)
    parts = {"model": probed.model, "probes": probed.probes, "optimizer": optimizer}
    first_step = 0
    if saved is not None:
        for name, part in parts.items():
            part.load_state_dict(saved[name])
        first_step = saved["step"]
        print(f"resuming at step {first_step}")
    progress = trange(first_step, num_steps, initial=first_step, total=num_steps, unit="step")
    for step in progress:
        rng = np.random.default_rng([SEED + 2, step])
        warmup = min(1.0, (step + 1) / 200)
        for group in optimizer.param_groups:
            group["lr"] = peak * warmup * 0.5 * (1 + math.cos(math.pi * step / num_steps))
        chosen = rng.integers(len(clips), size=settings["batch_size"])
        captions = [draw_caption(rng, clips[i]) for i in chosen]
        targets = build_targets(captions, [clips[i] for i in chosen])
        losses = compute_losses(probed(captions, [videos[i] for i in chosen]), targets)
        loss = torch.stack(list(losses.values())).sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if step % 50 == 0:
            worst = max(losses, key=lambda name: losses[name].item())
            progress.set_postfix(loss=f"{loss.item():.3f}", worst=f"{worst} {losses[worst].item():.3f}")
        if (step + 1) % 500 == 0:
            states = {name: part.state_dict() for name, part in parts.items()}
            partial = state_path.with_name(f".{state_path.name}.partial")
            torch.save({**states, "step": step + 1, "settings": settings}, partial)
            partial.replace(state_path)


def compute_losses(logits: dict[str, Any], targets: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return the cross-entropy of every probe, a mean over the clips that its target applies to."""
    import torch
    from torch.nn.functional import cross_entropy

    return {name: cross_entropy(one, torch.from_numpy(targets[name]), ignore_index=-1) for name, one in logits.items()}


def check_settings(path: Path, found: dict | None, settings: dict) -> None:
    """Raise ConfigError if the state was made with other arguments: the result would be that of neither run."""
    if found != settings:
        changed = [name for name in settings if (found or {}).get(name) != settings[name]]
        raise ConfigError(
            f"{path}: was made with another {', '.join(changed)}; give the same arguments, or delete it to start over"
        )


def evaluate(probed: Probed, clips: Sequence[Clip], videos: Sequence[Video]) -> dict[str, Any]:
    """Return each probe's accuracy, and how often a caption with one wrong word scores lower than the right one."""
    import torch

    rng = np.random.default_rng(SEED + 3)
    probed.model.eval()
    right: dict[str, list[float]] = {}
    with torch.no_grad():
        for start in range(0, len(clips), 200):
            chunk = slice(start, start + 200)
            captions = [draw_caption(rng, clip) for clip in clips[chunk]]
            targets = build_targets(captions, clips[chunk])
            for name, logits in probed(captions, videos[chunk]).items():
                valid = targets[name] >= 0
                right.setdefault(name, []).extend((logits.argmax(1).numpy() == targets[name])[valid].tolist())
            true = [Prompt(clip.colour, clip.shape, clip.motion, clip.scene, None, 0) for clip in clips[chunk]]
            hard = [_change_one_word(rng, caption) for caption in true]
            scores = []
            for captions in (true, hard):
                logits = probed(captions, videos[chunk])
                named = torch.stack([logits[f"match/{name}"].log_softmax(1)[:, 1] for name in NAMED])
                scores.append(named.sum(0))
            right.setdefault("hard_matching", []).extend((scores[0] > scores[1]).tolist())
    return {name: round(float(np.mean(values)), 4) for name, values in right.items()}


def _change_one_word(rng: np.random.Generator, caption: Prompt) -> Prompt:
    while True:
        name = str(rng.choice(tuple(NAMED)))
        changed = replace(caption, **{name: str(rng.choice(NAMED[name]))})
        if changed != caption and not synthetic.is_held_out(changed.colour, changed.shape, changed.motion):
            return changed


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="working folder; clips and state are kept for a resume")
    parser.add_argument("--num_clips", type=int, default=24000)
    parser.add_argument("--num_steps", type=int, default=2200)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    arguments = parser.parse_args()
    pretrain(**vars(arguments))


if __name__ == "__main__":
    run_script(main)
