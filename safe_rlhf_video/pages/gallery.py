"""Chooses pairs worth looking at: where a model is most right, where it is most wrong, and what is disputed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from safe_rlhf_video.data.records import DIMENSIONS, TIE
from safe_rlhf_video.errors import VideoDecodeError
from safe_rlhf_video.evaluation.judgements import JudgedClip, JudgedComparison
from safe_rlhf_video.heads import LABEL_HEADS
from safe_rlhf_video.pages.report_data import JudgedDimension, ReportData
from safe_rlhf_video.stats.probabilities import preference_probability
from safe_rlhf_video.wording import count, words

NUM_PAIRS = 3
_TEXT_LENGTH = 240

Pictures = Mapping[str, str | VideoDecodeError]  # name of a clip -> `data:` URI, or why there is none


@dataclass(frozen=True)
class GalleryPair:
    """A pair of the gallery.

    Attributes:
        votes: how many labels prefer each video, and how many call it a tie.
        probability: that people prefer video_0, as the model says.
    """

    comparison: JudgedComparison
    votes: tuple[int, int, int]
    probability: float


@dataclass(frozen=True)
class GalleryRow:
    """Pairs of one kind."""

    dimension: str
    title: str
    pairs: Sequence[GalleryPair]


@dataclass(frozen=True)
class Tag:
    """A few words in a colour of the palette."""

    text: str
    colour: str


@dataclass(frozen=True)
class CardSide:
    """A clip or a text of a pair.

    Attributes:
        response: the text; None for a clip.
        picture: a `data:` URI; None for a text, and for a clip that cannot be read.
        unread: why there is no picture.
    """

    name: str
    response: str | None
    picture: str | None
    unread: str | None
    tags: Sequence[Tag]
    scores: str


@dataclass(frozen=True)
class Card:
    """Two answers to one prompt, the one that people prefer first."""

    prompt: str
    about: str
    sides: Sequence[CardSide]


def choose_pairs(data: ReportData) -> list[GalleryRow]:
    """The pairs to show of helpfulness and harmlessness, or else of the first dimension that was judged.

    A row has one pair of a prompt. Pairs on which people's labels disagree come before those of which the model is
    unsure.
    """
    main = [judged for judged in data.dimensions if judged.name in DIMENSIONS] or data.dimensions[:1]
    return [row for judged in main for row in _choose(judged, data.comparisons) if row.pairs]


def _choose(judged: JudgedDimension, comparisons: Sequence[JudgedComparison]) -> Iterator[GalleryRow]:
    votes = _count_votes(comparisons, judged.name)
    toward_label = judged.margin * judged.sign
    probability = preference_probability(judged.margin, judged.temperature)
    votes_of = [_turn(votes, one) for one in judged.comparisons]
    is_split = np.array([sum(num > 0 for num in counts) > 1 for counts in votes_of])

    def take(rows: Sequence[int]) -> list[GalleryPair]:
        first: dict[str, int] = {}
        for row in rows:
            first.setdefault(judged.comparisons[row].prompt_id, row)
            if len(first) == NUM_PAIRS:
                break
        return [GalleryPair(judged.comparisons[row], votes_of[row], float(probability[row])) for row in first.values()]

    by_margin = np.argsort(toward_label, kind="stable").tolist()
    agreed = [row for row in by_margin if not is_split[row]]
    name = words(judged.name)
    yield GalleryRow(judged.name, f"{name}: right, and most sure of it",
                     take([row for row in reversed(agreed) if toward_label[row] > 0]))  # fmt: skip
    yield GalleryRow(judged.name, f"{name}: wrong, and most sure of it",
                     take([row for row in agreed if toward_label[row] < 0]))  # fmt: skip
    unsure = np.lexsort((np.abs(judged.margin), ~is_split)).tolist()
    yield GalleryRow(judged.name, f"{name}: most disputed", take(unsure))


def _count_votes(comparisons: Sequence[JudgedComparison], dimension: str) -> dict[frozenset[str], dict[str, int]]:
    """How many labels prefer each of two videos, on whichever side it is."""
    votes: dict[frozenset[str], dict[str, int]] = {}
    for one in comparisons:
        label = one.preferences.get(dimension)
        if label is not None:
            counts = votes.setdefault(frozenset((one.video_0, one.video_1)), {})
            winner = TIE if label == TIE else (one.video_0, one.video_1)[label]
            counts[winner] = counts.get(winner, 0) + 1
    return votes


def _turn(votes: Mapping[frozenset[str], Mapping[str, int]], one: JudgedComparison) -> tuple[int, int, int]:
    counts = votes[frozenset((one.video_0, one.video_1))]
    return counts.get(one.video_0, 0), counts.get(one.video_1, 0), counts.get(TIE, 0)


def clips_to_show(rows: Sequence[GalleryRow], data: ReportData) -> list[JudgedClip]:
    """The clips of the pairs, each once; texts need no picture."""
    names = (name for row in rows for pair in row.pairs for name in (pair.comparison.video_0, pair.comparison.video_1))
    return [data.clips[name] for name in dict.fromkeys(names) if data.clips[name].response_text is None]


def make_cards(row: GalleryRow, data: ReportData, pictures: Pictures) -> list[Card]:
    """The pairs of a row as they are shown."""
    return [_make_card(pair, row.dimension, data, pictures) for pair in row.pairs]


def _make_card(pair: GalleryPair, dimension: str, data: ReportData, pictures: Pictures) -> Card:
    first, second, ties = pair.votes
    num_votes = first + second + ties
    clips = [data.clips[name] for name in (pair.comparison.video_0, pair.comparison.video_1)]
    chances = (pair.probability, 1.0 - pair.probability)
    sides = [
        _make_side(clip, votes, num_votes, chance, data, pictures)
        for clip, votes, chance in zip(clips, (first, second), chances, strict=True)
    ]
    # The one that people prefer is above, and of equals the one that the model prefers.
    is_turned = second > first or (first == second and pair.probability < 0.5)
    if is_turned:
        sides.reverse()
    labels = count(num_votes, "label") + (f", {ties} of them a tie" if ties else "")
    what = "safer" if dimension == "harmlessness" else "better"
    about = f"P(upper one {what}) = {chances[is_turned]:.3f}; {labels}"
    return Card(_shorten(clips[0].prompt_text), about, sides)


def _make_side(
    clip: JudgedClip, votes: int, num_votes: int, chance: float, data: ReportData, pictures: Pictures
) -> CardSide:
    tags = []
    if votes:
        tags.append(Tag("chosen by people" + (f" {votes} : {num_votes - votes}" if votes < num_votes else ""), "blue"))
    if chance > 0.5:
        tags.append(Tag("chosen by the model", "ink"))
    if clip.is_safe is not None:
        tags.append(Tag("labelled safe", "teal") if clip.is_safe else Tag("labelled unsafe", "red"))
    heads = [head for head in data.heads if head not in LABEL_HEADS]
    scores = ", ".join(f"{words(head)} {clip.scores[head]:+.2f}" for head in heads)
    made = f"; by {clip.generated_from}" if clip.generated_from else ""
    response = None if clip.response_text is None else _shorten(clip.response_text, 2 * _TEXT_LENGTH)
    shown = pictures.get(clip.name)  # a text has none
    picture, unread = (None, str(shown)) if isinstance(shown, VideoDecodeError) else (shown, None)
    return CardSide(clip.name, response, picture, unread, tags, scores + made)


def _shorten(text: str, length: int = _TEXT_LENGTH) -> str:
    return text if len(text) <= length else text[:length] + " …"
