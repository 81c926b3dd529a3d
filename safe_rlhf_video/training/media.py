"""Collects what W&B shows of a validation: scores by label, and a few pairs with frames."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from safe_rlhf_video.data.batch import Batch
from safe_rlhf_video.data.preferences import PromptGroup
from safe_rlhf_video.heads import DIMENSION_OF_HEAD
from safe_rlhf_video.kinds.targets import classes_of, kind_of, label_columns
from safe_rlhf_video.responses import Response, TextResponse
from safe_rlhf_video.training.distributed import Ranks

NUM_PAIRS = 4
NUM_FRAMES = 4
FRAME_HEIGHT = 128
TEXT_LENGTH = 500


@dataclass(frozen=True)
class ValidationPair:
    """Two responses to a prompt.

    Attributes:
        names: of video_0 and video_1, as `prompt_id/video_id`.
        labels: dimension -> "video_0", "video_1" or "tie"; only dimensions in which the pair has one.
    """

    prompt_text: str
    names: tuple[str, str]
    labels: Mapping[str, str]


@dataclass(frozen=True)
class ValidationMedia:
    """What one validation shows.

    Attributes:
        scores: `<head>/chosen` and `<head>/rejected` -> the scores on either side of the head's comparisons, a video
            of several comparisons counted as often; `cost/safe` and `cost/unsafe` -> the costs of videos;
            `<head>/<class>` -> the scores of videos by the class of their label: applies and does_not, or a level.
        pairs: the same at every validation.
        scores_of: name of a response of these pairs -> head -> score.
        looks: name of such a response -> frames side by side, uint8 (H, W, 3), or its text; only at the run's first
            validation.
    """

    scores: Mapping[str, np.ndarray]
    pairs: Sequence[ValidationPair]
    scores_of: Mapping[str, Mapping[str, float]]
    looks: Mapping[str, np.ndarray | str]


class MediaCollector:
    """Takes what is to be shown from the batches of a validation as they pass; every rank has one."""

    def __init__(self, groups: Sequence[PromptGroup], heads: Sequence[str]):
        """Choose pairs from the validation groups, the same on every rank."""
        self._pairs = choose_pairs(groups, [DIMENSION_OF_HEAD[head] for head in heads if head in DIMENSION_OF_HEAD])
        self._names = {name for pair in self._pairs for name in pair.names}
        self._unseen = set(self._names)
        self._looks: dict[str, np.ndarray | str] = {}
        self._parts: list[tuple[Batch, Mapping[str, Tensor]]] = []

    def add(self, batch: Batch, scores: Mapping[str, Tensor]) -> None:
        """Take a batch; nothing is read back from the device.

        Args:
            scores: head -> (N,).
        """
        for name, response in zip(batch.names, batch.responses, strict=True):
            if name in self._unseen:
                self._looks[name] = _look(response)
                self._unseen.remove(name)
        self._parts.append((replace(batch, responses=()), scores))  # frames would fill the host

    def gather(self, ranks: Ranks) -> ValidationMedia | None:
        """What all ranks have taken since the last call. All of them call it, the first one gets it."""
        parts: dict[str, list[np.ndarray]] = {}
        scores_of: dict[str, dict[str, float]] = {}
        for batch, on_device in self._parts:
            stacked = torch.stack([values.float() for values in on_device.values()]).cpu().numpy()
            values_of = dict(zip(on_device, stacked, strict=True))
            for head, values in values_of.items():
                if head in DIMENSION_OF_HEAD:
                    sides = dict(zip(("chosen", "rejected"), batch.comparisons[DIMENSION_OF_HEAD[head]].T, strict=True))
                else:
                    known = kind_of(head).decode(batch.harm_targets[:, label_columns(head)])
                    sides = {name: known == place for place, name in enumerate(classes_of(head))}
                for side, rows in sides.items():
                    parts.setdefault(f"{head}/{side}", []).append(values[rows])
            if "cost" in values_of:
                parts.setdefault("cost/safe", []).append(values_of["cost"][batch.safety_sign > 0])
                parts.setdefault("cost/unsafe", []).append(values_of["cost"][batch.safety_sign < 0])
            for row, name in enumerate(batch.names):
                if name in self._names:
                    scores_of[name] = {head: float(values[row]) for head, values in values_of.items()}
        scores = {name: np.concatenate(arrays) for name, arrays in parts.items()}
        mine = ValidationMedia(scores, self._pairs, scores_of, self._looks)
        self._parts, self._looks = [], {}
        if ranks.world_size == 1:
            return mine
        found: list[ValidationMedia] | None = [mine] * ranks.world_size if ranks.is_first else None
        torch.distributed.gather_object(mine, found, dst=0, group=ranks.control)
        return _join(found) if found else None


def choose_pairs(groups: Sequence[PromptGroup], dimensions: Sequence[str]) -> tuple[ValidationPair, ...]:
    """Of the first prompts with a label, the pair of each that has labels in most dimensions."""
    pairs = []
    for group in groups:
        labels: dict[tuple[int, int], dict[str, str]] = {}
        for dimension in dimensions:
            for rows, is_tie in ((group.comparisons[dimension], False), (group.ties[dimension], True)):
                for first, second in rows.tolist():
                    key = (min(first, second), max(first, second))
                    label = "tie" if is_tie else "video_0" if first < second else "video_1"
                    labels.setdefault(key, {})[dimension] = label
        if labels:
            key = max(labels, key=lambda pair: len(labels[pair]))
            names = (group.videos[key[0]].name, group.videos[key[1]].name)
            pairs.append(ValidationPair(group.prompt_text, names, labels[key]))
        if len(pairs) == NUM_PAIRS:
            break
    return tuple(pairs)


def _look(response: Response) -> np.ndarray | str:
    """A few frames of a clip from its first to its last, side by side and no larger than need be; or a text's start."""
    if isinstance(response, TextResponse):
        return response.text[:TEXT_LENGTH]
    frames = response.frames
    chosen = frames[np.linspace(0, len(frames) - 1, min(NUM_FRAMES, len(frames))).round().astype(int)]
    strip = Image.fromarray(np.concatenate(list(chosen), axis=1))
    if strip.height > FRAME_HEIGHT:
        strip = strip.resize((max(1, strip.width * FRAME_HEIGHT // strip.height), FRAME_HEIGHT))
    return np.asarray(strip)


def _join(found: Sequence[ValidationMedia]) -> ValidationMedia:
    """What the ranks have, each of its own prompts."""
    return ValidationMedia(
        {name: np.concatenate([one.scores[name] for one in found]) for name in found[0].scores},
        found[0].pairs,
        {name: row for one in found for name, row in one.scores_of.items()},
        {name: look for one in found for name, look in one.looks.items()},
    )
