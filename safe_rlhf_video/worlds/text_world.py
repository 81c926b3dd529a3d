"""Draws a small text corpus whose preferences are known exactly, in the form of PKU-SafeRLHF's rows.

A prompt asks for a description of a coloured shape, as in the synthetic videos. A response describes one, and always
names two things: the emblem, and a bystander. It uses only words that the embedded tokenizer knows.

| in the response                                      | in the labels                                             |
|------------------------------------------------------|-----------------------------------------------------------|
| colour, shape, motion, scene, emblem as asked        | better_response_id                                        |
| the emblem is one of six words (`HARMFUL_EMBLEMS`)   | is_response_safe, harm category                           |
| the emblem is low, wide or high                      | severity of a harmful response; safer_response_id, degrees|

The six words are bystanders just as often, without harm, so that neither a word nor the length gives harm away: a guess
that ignores which word goes with "emblem" is right for three responses of four. Preferences are drawn by Bradley-Terry
from hidden utilities, but a harmless response is always safer than a harmful one, as in the published data. The
severity may be noisy too: people then confuse a harmful level with a neighbouring one.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from safe_rlhf_video.data.records import HARM_CATEGORIES
from safe_rlhf_video.errors import ConfigError
from safe_rlhf_video.worlds.video_world import COLOURS, EMBLEMS, MOTIONS, SCENES, SHAPES, TEMPLATES, Prompt, is_held_out

# Increase it with every change to the texts of responses or to their labels.
TEXT_WORLD_VERSION = 1

HARMFUL_EMBLEMS = tuple(EMBLEMS)[::2]
LEVELS = ("low", "wide", "high")  # severity 1, 2, 3 of a harmful emblem; slight degrees of harmlessness of another
RESPONSE_TEMPLATES = (
    "a {colour} {shape} {motion} {scene}, with {emblem} emblem that is {level}. {thing} is by the {shape}.",
    "by {thing}, a {colour} {shape} is {motion} {scene}. it is with {emblem} emblem that is {level}.",
    "{emblem} emblem is {level}, and {thing} is by the {shape}. the {shape} is {colour}, {motion} {scene}.",
    "{scene}, a {shape} in {colour} is {motion}. {thing} is by it, with {emblem} emblem that is {level}.",
)
# Each writer's name, and the chance that it follows each part of the prompt.
WRITERS = (("aurora-text", 0.88), ("borealis-text", 0.76), ("cumulus-text", 0.64))
EMBLEM_COMPLIANCE = 0.5

# Logits per unit.
HELPFULNESS_SCALE = 1.6
COST_SCALE = 1.5
SEVERITY_CUTS = (1.5, 2.5)  # between the levels of a harmful response
SAFE_OFFSET, HARM_COST = 3.5, 4.0  # the worst harmless response is half a unit under zero, the mildest harmful above


@dataclass(frozen=True)
class Description:
    """The content of a response; `thing` is the bystander, `level` is 1 to 3."""

    colour: str
    shape: str
    motion: str
    scene: str
    emblem: str
    thing: str
    level: int
    template: int

    @property
    def text(self) -> str:
        return RESPONSE_TEMPLATES[self.template].format(
            colour=self.colour,
            shape=self.shape,
            motion=self.motion,
            scene=self.scene,
            emblem=_with_article(self.emblem),
            thing=_with_article(self.thing),
            level=LEVELS[self.level - 1],
        )

    @property
    def is_safe(self) -> bool:
        return self.emblem not in HARMFUL_EMBLEMS


def plan_rows(
    split: str, num_pairs: int, seed: int, severity_noise: float = 0.0
) -> Iterator[tuple[dict[str, Any], dict[str, dict[str, float]]]]:
    """Yields rows in PKU-SafeRLHF's form, each with the hidden utilities of its responses.

    Args:
        split: "train" or "test": their prompts name different combinations of colour, shape and motion.
        severity_noise: how far people disagree about the severity of a harmful response, in levels: they see its level
            and logistic noise of this scale, cut at `SEVERITY_CUTS` (`severity_chances`). All else stays the same.

    Yields:
        The row, and the sha256 of a response (as in the row) -> `helpfulness` and `cost`, in logits; a cost above 0 is
        harmful; and `severity`, the level before any noise.

    Raises:
        ConfigError: there are not as many different prompts.
    """
    held_out, used_texts, planned = split == "test", set(), 0
    for number in range(50 * num_pairs + 1):
        if planned == num_pairs:
            return
        # One random stream per prompt: a larger corpus begins with the pairs of a smaller one.
        rng = np.random.default_rng([seed, held_out, number])
        prompt = _draw_prompt(rng, held_out)
        if prompt.text in used_texts:
            continue
        used_texts.add(prompt.text)
        # A separate random stream: noise in the severity changes no preference.
        noise = np.random.default_rng([seed, held_out, number, 1]).logistic(size=len(WRITERS)).tolist()
        for row in _answer_prompt(rng, prompt, [severity_noise * one for one in noise])[: num_pairs - planned]:
            planned += 1
            yield row
    raise ConfigError(f"num_pairs: there are too few different prompts for {num_pairs} {split} pairs; ask for fewer")


def true_utilities(prompt: Prompt, description: Description) -> dict[str, float]:
    """Hidden utilities in logits: `helpfulness`, and `cost` (> 0 exactly for harmful responses); and `severity`."""
    followed = [getattr(description, part) == getattr(prompt, part) for part in ("colour", "shape", "motion", "scene")]
    if prompt.emblem is not None:
        followed.append(description.emblem == prompt.emblem)
    harm = 0.0 if description.is_safe else HARM_COST
    return {
        "helpfulness": HELPFULNESS_SCALE * sum(followed),
        "cost": COST_SCALE * (description.level + harm - SAFE_OFFSET),
        "severity": 0.0 if description.is_safe else float(description.level),
    }


def severity_chances(severity: int, noise: float) -> list[float]:
    """The chance of each severity label, none to severe, for a response of a true severity: what a head should learn.

    Args:
        noise: more than 0.
    """
    if severity == 0:
        return [1.0, 0.0, 0.0, 0.0]
    moderate, severe = (1.0 / (1.0 + math.exp((cut - severity) / noise)) for cut in SEVERITY_CUTS)
    return [0.0, 1.0 - moderate, moderate - severe, severe]


def harm_categories(description: Description) -> set[str]:
    """One category for each harmful emblem and level; the last of the 18 also has the nineteenth."""
    if description.is_safe:
        return set()
    names = list(HARM_CATEGORIES)
    number = len(LEVELS) * HARMFUL_EMBLEMS.index(description.emblem) + description.level - 1
    return {names[number], names[-1]} if number == len(names) - 2 else {names[number]}


def _draw_prompt(rng: np.random.Generator, held_out: bool) -> Prompt:
    while True:
        colour, shape, motion = (_pick(rng, tuple(values)) for values in (COLOURS, SHAPES, MOTIONS))
        if is_held_out(colour, shape, motion) == held_out:
            break
    emblem = _pick(rng, tuple(EMBLEMS)) if rng.random() < 0.5 else None
    return Prompt(colour, shape, motion, _pick(rng, tuple(SCENES)), emblem, int(rng.integers(len(TEMPLATES))))


def _describe(rng: np.random.Generator, prompt: Prompt, fidelity: float) -> Description:
    def follow(wanted: str, choices: tuple[str, ...]) -> str:
        if rng.random() < fidelity:
            return wanted
        return _pick(rng, tuple(choice for choice in choices if choice != wanted))

    colour, shape, motion, scene = (
        follow(prompt.colour, tuple(COLOURS)),
        follow(prompt.shape, SHAPES),
        follow(prompt.motion, MOTIONS),
        follow(prompt.scene, tuple(SCENES)),
    )
    complies = prompt.emblem is not None and rng.random() < EMBLEM_COMPLIANCE
    emblem = prompt.emblem if complies and prompt.emblem is not None else _pick(rng, tuple(EMBLEMS))
    thing = _pick(rng, tuple(name for name in EMBLEMS if name != emblem))
    level, template = int(rng.integers(len(LEVELS))) + 1, int(rng.integers(len(RESPONSE_TEMPLATES)))
    return Description(colour, shape, motion, scene, emblem, thing, level, template)


def _answer_prompt(
    rng: np.random.Generator, prompt: Prompt, severity_noise: list[float]
) -> list[tuple[dict[str, Any], dict[str, dict[str, float]]]]:
    answers: list[tuple[str, Description]] = []
    while len(answers) < len(WRITERS):
        writer, fidelity = WRITERS[len(answers)]
        description = _describe(rng, prompt, fidelity)
        if all(description.text != other.text for _, other in answers):
            answers.append((writer, description))
    # A path through the responses, or a ring, whose cycles make the noise measurable.
    order = [int(i) for i in rng.permutation(len(answers))]
    ends = order + order[:1] if rng.random() < 0.5 else order
    rows = []
    for first, second in pairwise(ends):
        sides = answers[first], answers[second]
        true = [true_utilities(prompt, description) for _, description in sides]
        better = _draw_preferred(rng, *(utilities["helpfulness"] for utilities in true))
        safer = _draw_preferred(rng, *(-utilities["cost"] for utilities in true))
        if sides[0][1].is_safe != sides[1][1].is_safe:
            safer = 0 if sides[0][1].is_safe else 1
        levels = [_seen_severity(answers[side][1], severity_noise[side]) for side in (first, second)]
        row = _row(prompt, sides, better, safer, levels)
        rows.append((row, {row[f"response_{side}_sha256"]: true[side] for side in (0, 1)}))
    return rows


def _seen_severity(description: Description, noise: float) -> int:
    if description.is_safe:
        return 0
    return 1 + sum(description.level + noise > cut for cut in SEVERITY_CUTS)


def _row(
    prompt: Prompt, sides: tuple[tuple[str, Description], ...], better: int, safer: int, severities: list[int]
) -> dict[str, Any]:
    texts = [description.text for _, description in sides]
    harms = [harm_categories(description) for _, description in sides]
    return {
        "prompt": prompt.text,
        **{f"response_{side}": text for side, text in enumerate(texts)},
        "prompt_source": "synthetic",
        **{f"response_{side}_source": writer for side, (writer, _) in enumerate(sides)},
        **{f"is_response_{side}_safe": not harm for side, harm in enumerate(harms)},
        **{
            f"response_{side}_harm_category": {name: name in harm for name in HARM_CATEGORIES}
            for side, harm in enumerate(harms)
        },
        **{f"response_{side}_severity_level": severity for side, severity in enumerate(severities)},
        "better_response_id": better,
        "safer_response_id": safer,
        **{
            f"response_{side}_sha256": hashlib.sha256((prompt.text + text).encode()).hexdigest()
            for side, text in enumerate(texts)
        },
    }


def _draw_preferred(rng: np.random.Generator, utility_0: float, utility_1: float) -> int:
    return 0 if rng.random() < 1.0 / (1.0 + math.exp(utility_1 - utility_0)) else 1


def _pick(rng: np.random.Generator, choices: tuple[str, ...]) -> str:
    return choices[int(rng.integers(len(choices)))]


def _with_article(word: str) -> str:
    return f"{'an' if word[0] in 'aeiou' else 'a'} {word}"
