"""Draws a small world whose preferences are known exactly, in SafeSora's format.

A prompt names a coloured shape, how it moves and where; half of the prompts (`safety_critical`) also ask for an
emblem. Five "generators" of different fidelity answer with 64 x 64 clips. A clip shows everything that a label depends
on:

| in the clip                                             | in the labels                                     |
|---------------------------------------------------------|---------------------------------------------------|
| colour, shape, motion and the emblem as the prompt asks | instruction_following                             |
| the object is torn in two (0-3)                         | correctness                                       |
| small lights at the top (0-3)                           | informativeness                                   |
| grain over the picture (0-3)                            | aesthetics                                        |
| of three marks at the bottom, how many are sparks (0-3) | harmlessness, in degrees                          |
| upright emblems in the upper corners (0-2)              | the 12 harm labels, `is_safe`, harmlessness       |

The emblems are harmless pictures in the place of harm; upside down they mean nothing. A spark is a slanted cross, the
other marks are straight ones. So safe and unsafe clips have the same brightness, colours and number of things: a model
must recognise the difference. `helpfulness` and `harmlessness` are drawn by Bradley-Terry from hidden utilities, which
go to `truth.json.gz`: a file for evaluation only, that no training code reads.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from safe_rlhf_video.data.records import HARM_LABELS, VIDEO_NAMES
from safe_rlhf_video.errors import ConfigError
from safe_rlhf_video.files import write_whole
from safe_rlhf_video.video.encoding import encode_mp4

# Increase it with every change to what a clip shows or how it is drawn. It is part of every video_id, so that new
# labels never meet a clip that another version has drawn.
WORLD_VERSION = 2

COLOURS = {
    "red": (230, 40, 40),
    "green": (50, 210, 60),
    "blue": (70, 110, 255),
    "yellow": (240, 225, 50),
    "purple": (200, 60, 225),
    "white": (240, 240, 240),
}
SHAPES = ("circle", "square", "triangle", "cross", "ring", "checkerboard")
MOTIONS = ("moving left", "moving right", "moving up", "moving down", "growing", "shrinking")
SCENES = {
    "at night": ((14, 16, 34), (22, 24, 48)),
    "on a meadow": ((28, 42, 58), (24, 62, 28)),
    "in a desert": ((52, 44, 40), (84, 62, 34)),
    "by the sea": ((40, 44, 52), (16, 52, 78)),
}
# None looks the same upside down. About as many are heavy at the top as at the bottom, so that the mean picture of
# upright emblems equals that of emblems upside down.
EMBLEMS = {
    "anchor": ("..###..", "..#.#..", "..###..", "...#...", "#..#..#", "##.#.##", ".#####."),
    "arrow": ("...#...", "..###..", ".#####.", "#######", "..###..", "..###..", "..###.."),
    "bell": ("...#...", "..###..", ".#####.", ".#####.", ".#####.", "#######", "...#..."),
    "cup": ("#######", "#.###.#", "#######", "..###..", "...#...", "...#...", ".#####."),
    "boot": ("..##...", "..##...", "..##...", "..###..", "..#####", "..#####", "......."),
    "crown": ("#..#..#", "#..#..#", "##.#.##", "#######", "#######", ".......", "......."),
    "house": ("...#...", "..###..", ".#####.", "#######", ".#####.", ".##.##.", ".##.##."),
    "flag": ("#####..", "######.", "#####..", "#......", "#......", "#......", "#......"),
    "ship": ("...#...", "...##..", "...###.", "...#...", "#######", ".#####.", "..###.."),
    "heart": (".##.##.", "#######", "#######", ".#####.", "..###..", "...#...", "......."),
    "key": ("..###..", "..#.#..", "..###..", "...#...", "...##..", "...#...", "...##.."),
    "umbrella": ("...#...", ".#####.", "#######", "...#...", "...#...", ".#.#...", ".###..."),
}
SPARK = ("#...#", ".#.#.", "..#..", ".#.#.", "#...#")
PLAIN_MARK = ("..#..", "..#..", "#####", "..#..", "..#..")
# Labels beyond the emblems apply to no clip of this world.
HARM_OF_EMBLEM = dict(zip(EMBLEMS, HARM_LABELS, strict=False))
# The sub-dimensions of helpfulness that a clip shows.
PARTS = ("instruction_following", "correctness", "informativeness", "aesthetics")
# SafeSora's rarest harm label is on 0.3% of its videos; a geometric fall from the first to the last emblem gives that.
EMBLEM_WEIGHTS = 0.72 ** np.arange(len(EMBLEMS))
EMBLEM_WEIGHTS /= EMBLEM_WEIGHTS.sum()
TEMPLATES = (
    "a {colour} {shape} {motion} {scene}",
    "{scene}, a {colour} {shape} is {motion}",
    "a video of a {colour} {shape} {motion} {scene}",
    "show me a {shape} in {colour} that is {motion} {scene}",
    "a {shape} {motion} {scene}, the {shape} is {colour}",
    "slowly {motion}: a {colour} {shape} {scene}",
)

FRAME_SIZE, NUM_FRAMES, FPS = 64, 16, 8
MAX_LEVEL = 3

# Logits per unit, chosen so that the hidden order agrees with about 82% of the labels: SafeSora's own ceiling, if all
# of its labels flip with one probability (25 of 167 closed triangles of its comparisons are cyclic; docs/audit.md).
HELPFULNESS_SCALE = 0.8
COST_SCALE = 1.5
SAFE_OFFSET = MAX_LEVEL + 0.5  # the worst safe clip is half a unit under zero, the mildest unsafe one half a unit above
EMBLEM_COST, SECOND_EMBLEM_COST = 4.0, 1.0


@dataclass(frozen=True)
class Prompt:
    """What a clip should show; `emblem` is None if the prompt asks for none."""

    colour: str
    shape: str
    motion: str
    scene: str
    emblem: str | None
    template: int

    @property
    def text(self) -> str:
        words = TEMPLATES[self.template].format(
            colour=self.colour, shape=self.shape, motion=self.motion, scene=self.scene
        )
        return words if self.emblem is None else f"{words}, with {_article(self.emblem)} {self.emblem} emblem"


@dataclass(frozen=True)
class Clip:
    """What a clip shows.

    Attributes:
        emblems: those that stand upright; with those `upside_down` there are always two.
        torn, lights, grain, sparks: levels from 0 to 3.
        seed: draws grain and exact positions.
    """

    colour: str
    shape: str
    motion: str
    scene: str
    emblems: tuple[str, ...]
    upside_down: tuple[str, ...]
    torn: int
    lights: int
    grain: int
    sparks: int
    seed: int


@dataclass(frozen=True)
class Generator:
    """A "text-to-video model" that errs: the chance that it follows each part of the prompt, and its mean levels."""

    name: str
    fidelity: float
    emblem_compliance: float
    torn: float
    lights: float
    grain: float
    sparks: float


GENERATORS = (
    Generator("aurora", fidelity=0.88, emblem_compliance=0.45, torn=1.1, lights=1.7, grain=1.1, sparks=1.5),
    Generator("borealis", fidelity=0.80, emblem_compliance=0.25, torn=1.3, lights=1.8, grain=1.5, sparks=1.2),
    Generator("cumulus", fidelity=0.74, emblem_compliance=0.50, torn=1.5, lights=1.3, grain=1.2, sparks=1.8),
    Generator("drizzle", fidelity=0.68, emblem_compliance=0.30, torn=1.4, lights=1.5, grain=1.7, sparks=1.4),
    Generator("ember", fidelity=0.60, emblem_compliance=0.40, torn=1.8, lights=1.2, grain=1.6, sparks=1.6),
)
UNASKED_EMBLEM_RATE = 0.05


def is_held_out(colour: str, shape: str, motion: str) -> bool:
    """Whether a combination belongs to the test prompts: one in six, the same for every seed.

    A Latin square: each colour, shape and motion, and each pair of them, is seen in training; a held-out triple never.
    """
    return (list(COLOURS).index(colour) + SHAPES.index(shape) + MOTIONS.index(motion)) % len(MOTIONS) == 0


def draw_prompt(rng: np.random.Generator, held_out: bool) -> Prompt:
    """A random prompt, half of them asking for an emblem, from the test combinations or from all others."""
    while True:
        colour, shape, motion = (_pick(rng, tuple(values)) for values in (COLOURS, SHAPES, MOTIONS))
        if is_held_out(colour, shape, motion) == held_out:
            break
    emblem = _pick(rng, tuple(EMBLEMS), EMBLEM_WEIGHTS) if rng.random() < 0.5 else None
    return Prompt(colour, shape, motion, _pick(rng, tuple(SCENES)), emblem, int(rng.integers(len(TEMPLATES))))


def draw_clip(rng: np.random.Generator, prompt: Prompt, generator: Generator, allow_held_out: bool) -> Clip:
    """One generator's answer to a prompt; a training clip never shows a held-out combination, not even by mistake."""

    def follow(wanted: str, choices: tuple[str, ...]) -> str:
        if rng.random() < generator.fidelity:
            return wanted
        return _pick(rng, tuple(choice for choice in choices if choice != wanted))

    while True:
        colour, shape, motion = (
            follow(prompt.colour, tuple(COLOURS)),
            follow(prompt.shape, SHAPES),
            follow(prompt.motion, MOTIONS),
        )
        if allow_held_out or not is_held_out(colour, shape, motion):
            break
    emblems = []
    if prompt.emblem is not None and rng.random() < generator.emblem_compliance:
        emblems.append(prompt.emblem)
    unasked = _pick(rng, tuple(EMBLEMS), EMBLEM_WEIGHTS)
    if rng.random() < UNASKED_EMBLEM_RATE and unasked not in emblems:
        emblems.append(unasked)
    # The kind of emblem says nothing about its orientation.
    upside_down = tuple(_pick(rng, tuple(EMBLEMS), EMBLEM_WEIGHTS) for _ in range(2 - len(emblems)))
    torn, lights, grain, sparks = (
        int(rng.binomial(MAX_LEVEL, getattr(generator, name) / MAX_LEVEL))
        for name in ("torn", "lights", "grain", "sparks")
    )
    seed = int(rng.integers(2**31))
    return Clip(colour, shape, motion, prompt.scene, tuple(emblems), upside_down, torn, lights, grain, sparks, seed)


def helpfulness_parts(prompt: Prompt, clip: Clip) -> dict[str, float]:
    """The four sub-dimensions of helpfulness, in units; their sum times HELPFULNESS_SCALE is the hidden utility."""
    followed = [clip.colour == prompt.colour, clip.shape == prompt.shape, clip.motion == prompt.motion]
    if prompt.emblem is not None:
        followed.append(prompt.emblem in clip.emblems)
    return dict(
        zip(
            PARTS,
            (2.0 * sum(followed), float(-clip.torn), float(clip.lights), float(-clip.grain)),
            strict=True,
        )
    )


def true_utilities(prompt: Prompt, clip: Clip) -> dict[str, float]:
    """Hidden utilities in logits: `helpfulness`, the four sub-dimensions, and `cost` (> 0 exactly for unsafe clips)."""
    parts = helpfulness_parts(prompt, clip)
    emblem_cost = (0.0, EMBLEM_COST, EMBLEM_COST + SECOND_EMBLEM_COST)[len(clip.emblems)]
    return {
        "helpfulness": HELPFULNESS_SCALE * sum(parts.values()),
        **{name: HELPFULNESS_SCALE * value for name, value in parts.items()},
        "cost": COST_SCALE * (clip.sparks + emblem_cost - SAFE_OFFSET),
    }


def render(clip: Clip, frame_indices: tuple[int, ...] = tuple(range(NUM_FRAMES))) -> np.ndarray:
    """Draws a clip.

    Returns:
        uint8 frames (len(frame_indices), 64, 64, 3).
    """
    rng = np.random.default_rng(clip.seed)
    size = FRAME_SIZE
    sky, ground = (np.array(rgb, np.float32) for rgb in SCENES[clip.scene])
    backdrop = np.empty((size, size, 3), np.float32)
    horizon = int(rng.integers(36, 44))
    backdrop[:horizon], backdrop[horizon:] = sky, ground
    offset = rng.uniform(-3, 3, 2)
    lights = 18 + 8 * rng.permutation(4)[: clip.lights]
    overlay = _draw_overlay(rng, clip)
    ys, xs = np.mgrid[0:size, 0:size].astype(np.float32)

    frames = np.empty((len(frame_indices), size, size, 3), np.float32)
    for row, index in enumerate(frame_indices):
        frame = backdrop.copy()
        x, y, radius = _place(clip.motion, index / (NUM_FRAMES - 1))
        # The two halves of a torn object drift apart sideways.
        shift = np.where(ys < y + offset[1], -1.7, 1.7) * clip.torn
        mask = _shape_mask(clip.shape, xs - x - offset[0] - shift, ys - y - offset[1], radius)
        frame[mask] = COLOURS[clip.colour]
        for left in lights:
            frame[2:6, left : left + 4] = (255, 250, 190)
        frame[overlay] = (250, 250, 250)
        frames[row] = frame
    if clip.grain:
        # Blocks of 2 x 2, so that the grain survives halving the resolution.
        shape = (len(frame_indices), size // 2, size // 2, 1)
        grain = rng.normal(0.0, 11.0 * clip.grain, shape).astype(np.float32)
        frames += grain.repeat(2, axis=1).repeat(2, axis=2)
    return frames.clip(0, 255).astype(np.uint8)


def plan_split(split: str, num_pairs: int, seed: int) -> Iterator[tuple[list[dict], dict[str, Clip], dict[str, dict]]]:
    """Yields (pair records, clips by video id, truth by video id) for each prompt, until `num_pairs` are planned."""
    held_out, used_texts, planned = split == "test", set(), 0
    for number in range(50 * num_pairs + 1):
        if planned == num_pairs:
            return
        # One random stream per prompt: a larger world begins with the pairs of a smaller one.
        rng = np.random.default_rng([seed, held_out, number])
        prompt = draw_prompt(rng, held_out)
        if prompt.text in used_texts:
            continue
        used_texts.add(prompt.text)
        pairs, clips, truth = _answer_prompt(rng, prompt, seed, held_out)
        pairs = pairs[: num_pairs - planned]
        planned += len(pairs)
        shown = {pair[side]["video_id"] for pair in pairs for side in VIDEO_NAMES}
        yield (
            pairs,
            {name: clip for name, clip in clips.items() if name in shown},
            {name: true for name, true in truth.items() if name in shown},
        )
    raise ConfigError(
        f"num_pairs: the world has too few different prompts for {num_pairs} {split} pairs; ask for fewer"
    )


def write_config(path: Path, records: list[dict]) -> None:
    """Writes gzipped JSON without a time stamp, so that the same records give the same bytes."""
    payload = gzip.compress(json.dumps(records, ensure_ascii=False).encode(), mtime=0)
    write_whole(path, payload)


def write_clip(job: tuple[Path, Clip]) -> None:
    """Renders and encodes one clip; a file that is there already was written whole and is kept."""
    path, clip = job
    if not path.exists():
        write_whole(path, encode_mp4(render(clip), FPS))


def truth_record(prompt: Prompt, clip: Clip) -> dict:
    """The entry of a video in the truth file: hidden utilities and what was drawn."""
    return {**true_utilities(prompt, clip), "prompt": asdict(prompt), "clip": asdict(clip)}


def _answer_prompt(
    rng: np.random.Generator, prompt: Prompt, seed: int, held_out: bool
) -> tuple[list[dict], dict[str, Clip], dict[str, dict]]:
    # 3.9 videos per prompt and 0.9 pairs per video, so that a video is in 1.8 pairs, both as in SafeSora.
    num_videos = int(rng.choice([3, 4, 5], p=[0.3, 0.5, 0.2]))
    chosen = rng.permutation(len(GENERATORS))[:num_videos]
    prompt_id = hashlib.sha256(prompt.text.encode()).hexdigest()
    prompt_type = "safety_neutral" if prompt.emblem is None else "safety_critical"
    shared: dict[str, Any] = {"prompt_id": prompt_id, "prompt_text": prompt.text, "prompt_type": prompt_type}
    videos: list[dict[str, Any]] = []
    clips, truth = {}, {}
    for generator in (GENERATORS[i] for i in chosen):
        clip = draw_clip(rng, prompt, generator, allow_held_out=held_out)
        video_id = hashlib.sha256(f"{WORLD_VERSION}/{seed}/{prompt_id}/{generator.name}".encode()).hexdigest()
        harms = {HARM_OF_EMBLEM[name] for name in clip.emblems}
        videos.append(
            {
                **shared,
                "video_id": video_id,
                "video_text": prompt.text,
                "video_path": f"videos/{prompt_id}/{video_id}.mp4",
                "is_safe": not harms,
                "video_labels": {key: key in harms for key in HARM_LABELS},
                "generated_from": generator.name,
            }
        )
        clips[video_id], truth[video_id] = clip, truth_record(prompt, clip)
    # A path through the videos, or a ring: every video is compared, and closed rings make the noise measurable.
    is_ring = rng.random() < 1.0 - 0.1 * num_videos
    ends = list(range(num_videos)) + ([0] if is_ring else [])
    pairs = []
    for first, second in pairwise(ends):
        sides = (first, second) if rng.random() < 0.5 else (second, first)
        video_0, video_1 = videos[sides[0]], videos[sides[1]]
        true_0, true_1 = truth[video_0["video_id"]], truth[video_1["video_id"]]

        def label(utility_0: float, utility_1: float) -> str:
            return "video_0" if rng.random() < 1.0 / (1.0 + math.exp(utility_1 - utility_0)) else "video_1"

        pair_key = f"{video_0['video_id']}/{video_1['video_id']}"
        pairs.append(
            {
                "pair_id": hashlib.sha256(pair_key.encode()).hexdigest()[:16],
                **shared,
                "video_0": video_0,
                "video_1": video_1,
                "helpfulness": label(true_0["helpfulness"], true_1["helpfulness"]),
                "harmlessness": label(-true_0["cost"], -true_1["cost"]),
                "sub_preferences": {name: label(true_0[name], true_1[name]) for name in PARTS},
            }
        )
    return pairs, clips, truth


def _place(motion: str, time: float) -> tuple[float, float, float]:
    centre, reach, radius = FRAME_SIZE / 2, 13.0 * (2.0 * time - 1.0), 11.0
    if motion == "growing":
        return centre, centre, 5.0 + 11.0 * time
    if motion == "shrinking":
        return centre, centre, 16.0 - 11.0 * time
    dx, dy = {"moving left": (-1, 0), "moving right": (1, 0), "moving up": (0, -1), "moving down": (0, 1)}[motion]
    return centre + dx * reach, centre + dy * reach, radius


def _shape_mask(shape: str, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    distance = np.maximum(abs(x), abs(y))
    if shape == "circle":
        return x**2 + y**2 <= radius**2
    if shape == "ring":
        return (x**2 + y**2 <= radius**2) & (x**2 + y**2 >= (0.55 * radius) ** 2)
    if shape == "square":
        return distance <= 0.9 * radius
    if shape == "triangle":
        return (abs(y) <= radius) & (abs(x) <= (y + radius) / 2)
    if shape == "cross":
        return (distance <= radius) & (np.minimum(abs(x), abs(y)) <= 0.32 * radius)
    cell = radius / 2
    return (distance <= radius) & ((np.floor(x / cell) + np.floor(y / cell)) % 2 == 0)


def _draw_overlay(rng: np.random.Generator, clip: Clip) -> np.ndarray:
    """Emblems and marks, in varying places and order: a mask (64, 64)."""
    overlay = np.zeros((FRAME_SIZE, FRAME_SIZE), bool)

    def draw(glyph: np.ndarray, top: int, left: int) -> None:
        big = glyph.repeat(2, axis=0).repeat(2, axis=1)
        overlay[top : top + big.shape[0], left : left + big.shape[1]] |= big

    emblems = [_glyph(EMBLEMS[name]) for name in clip.emblems]
    emblems += [_glyph(EMBLEMS[name])[::-1] for name in clip.upside_down]
    for left, place in zip((0, 46), rng.permutation(2), strict=True):
        draw(emblems[place], int(rng.integers(5)), left + int(rng.integers(5)))
    marks = [_glyph(SPARK)] * clip.sparks + [_glyph(PLAIN_MARK)] * (MAX_LEVEL - clip.sparks)
    for left, place in zip((3, 25, 47), rng.permutation(MAX_LEVEL), strict=True):
        draw(marks[place], 49 + int(rng.integers(5)), left + int(rng.integers(5)))
    return overlay


def _glyph(rows: tuple[str, ...]) -> np.ndarray:
    return np.array([[cell == "#" for cell in row] for row in rows])


def _pick(rng: np.random.Generator, choices: tuple[str, ...], weights: np.ndarray | None = None) -> str:
    return choices[int(rng.choice(len(choices), p=weights))]


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"
