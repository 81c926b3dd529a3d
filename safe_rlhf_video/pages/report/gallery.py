"""Pairs worth looking at: where a model is most right, where it is most wrong, and what is disputed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from safe_rlhf_video.data.records import DIMENSIONS, TIE, PairSample, VideoSample
from safe_rlhf_video.errors import VideoDecodeError
from safe_rlhf_video.heads import LABEL_HEADS
from safe_rlhf_video.pages.document import escape
from safe_rlhf_video.pages.report.sources import Evaluated, Judged
from safe_rlhf_video.stats.probabilities import preference_probability

NUM_PAIRS = 3
_TEXT_LENGTH = 240

STYLE = """
.pairs { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(21rem, 100%), 1fr)); gap: .9rem; }
article { padding: .7rem; background: var(--card); border: 1px solid var(--line); border-radius: .4rem;
  break-inside: avoid; }
article p { margin: 0 0 .35rem; }
article .prompt { font-weight: 600; font-size: .9rem; line-height: 1.35; }
article .side { margin: .5rem 0 0; padding: .4rem 0 0; border-top: 1px solid var(--line); font-size: .85rem; }
article img { width: 100%; display: block; border-radius: .2rem; }
article .tags { display: flex; flex-wrap: wrap; gap: .25rem; margin: .4rem 0 .25rem; }
article .unread { padding: .6rem; border: 1px dashed var(--dim); border-radius: .2rem; font-size: .8rem;
  color: var(--dim); }
article .text { padding: .5rem .6rem; border-left: 3px solid var(--line); white-space: pre-line; }
.tag { display: inline-block; padding: 0 .45rem; border: 1px solid currentColor; border-radius: 1rem; font-size: .78rem;
  font-weight: 600; }
.scores { font-variant-numeric: tabular-nums; }
"""


@dataclass(frozen=True)
class ShownPair:
    """A pair of the gallery.

    Attributes:
        votes: how many labels prefer each video, and how many call it a tie.
        probability: that people prefer video_0, as the model says.
    """

    pair: PairSample
    votes: tuple[int, int, int]
    probability: float


@dataclass(frozen=True)
class Choice:
    """Pairs of one kind."""

    dimension: str
    title: str
    pairs: Sequence[ShownPair]


def choose(evaluated: Evaluated) -> list[Choice]:
    """The pairs to show of helpfulness and harmlessness, or else of the first dimension that was judged.

    Of one prompt a kind has one pair. Pairs on which people's labels disagree come before those of which the model is
    unsure.
    """
    main = [judged for judged in evaluated.judged if judged.dimension in DIMENSIONS] or evaluated.judged[:1]
    return [choice for judged in main for choice in _choose(judged, evaluated.clips.pairs) if choice.pairs]


def _choose(judged: Judged, all_pairs: Sequence[PairSample]) -> Iterator[Choice]:
    votes = _count_votes(all_pairs, judged.dimension)
    pairs, toward_label = judged.labelled.pairs, judged.margin * judged.labelled.sign
    probability = preference_probability(judged.margin, judged.temperature)
    votes_of = [_turn(votes, pair) for pair in pairs]
    is_split = np.array([sum(count > 0 for count in counts) > 1 for counts in votes_of])

    def take(rows: Sequence[int]) -> list[ShownPair]:
        first: dict[str, int] = {}
        for row in rows:
            first.setdefault(pairs[row].prompt_id, row)
            if len(first) == NUM_PAIRS:
                break
        return [ShownPair(pairs[row], votes_of[row], float(probability[row])) for row in first.values()]

    by_margin = np.argsort(toward_label, kind="stable").tolist()
    agreed = [row for row in by_margin if not is_split[row]]
    name = judged.dimension.replace("_", " ")
    yield Choice(judged.dimension, f"{name}: right, and most sure of it",
                 take([row for row in reversed(agreed) if toward_label[row] > 0]))  # fmt: skip
    yield Choice(judged.dimension, f"{name}: wrong, and most sure of it",
                 take([row for row in agreed if toward_label[row] < 0]))  # fmt: skip
    unsure = np.lexsort((np.abs(judged.margin), ~is_split)).tolist()
    yield Choice(judged.dimension, f"{name}: most disputed", take(unsure))


def _count_votes(pairs: Sequence[PairSample], dimension: str) -> dict[tuple[str, frozenset[str]], dict[str, int]]:
    """How many labels prefer each of two videos, whichever side they stand on."""
    votes: dict[tuple[str, frozenset[str]], dict[str, int]] = {}
    for pair in pairs:
        label = pair.preferences[dimension]
        if label is None:
            continue
        sides = (pair.video_0.video_id, pair.video_1.video_id)
        counts = votes.setdefault((pair.prompt_id, frozenset(sides)), {})
        winner = TIE if label == TIE else sides[label]
        counts[winner] = counts.get(winner, 0) + 1
    return votes


def _turn(votes: Mapping[tuple[str, frozenset[str]], Mapping[str, int]], pair: PairSample) -> tuple[int, int, int]:
    sides = (pair.video_0.video_id, pair.video_1.video_id)
    counts = votes[pair.prompt_id, frozenset(sides)]
    return counts.get(sides[0], 0), counts.get(sides[1], 0), counts.get(TIE, 0)


def clip_names(choices: Sequence[Choice]) -> list[str]:
    """The clips that the pairs need, each once; texts need none."""
    videos = (
        video for choice in choices for shown in choice.pairs for video in (shown.pair.video_0, shown.pair.video_1)
    )
    return list(dict.fromkeys(video.name for video in videos if video.response_text is None))


def draw_gallery(
    choices: Sequence[Choice], evaluated: Evaluated, pictures: Mapping[str, str | VideoDecodeError]
) -> str:
    """The pairs as cards.

    Args:
        pictures: name of a clip -> `data:` URI, or why there is none.
    """
    parts = []
    for choice in choices:
        cards = "".join(_draw_pair(shown, choice.dimension, evaluated, pictures) for shown in choice.pairs)
        title = choice.title[:1].upper() + choice.title[1:]
        parts.append(f'<h3>{escape(title)}</h3><div class="pairs">{cards}</div>')
    return "".join(parts)


def _draw_pair(
    shown: ShownPair, dimension: str, evaluated: Evaluated, pictures: Mapping[str, str | VideoDecodeError]
) -> str:
    first, second, ties = shown.votes
    # The one that people prefer stands above, and of the others the one that the model prefers.
    is_turned = second > first or (first == second and shown.probability < 0.5)
    sides = [(shown.pair.video_0, first, shown.probability), (shown.pair.video_1, second, 1.0 - shown.probability)]
    if is_turned:
        sides.reverse()
    num_votes = first + second + ties
    labels = f"{num_votes} labels" if num_votes > 1 else "1 label"
    if ties:
        labels += f", {ties} of them a tie"
    drawn = "".join(
        _draw_side(video, votes, num_votes, probability, evaluated, pictures) for video, votes, probability in sides
    )
    what = "safer" if dimension == "harmlessness" else "better"
    return (
        f'<article><p class="prompt">{escape(_shorten(shown.pair.prompt_text))}</p>'
        f'<p class="dim">P(upper one {what}) = {sides[0][2]:.3f}; {labels}</p>{drawn}</article>'
    )


def _draw_side(
    video: VideoSample,
    votes: int,
    num_votes: int,
    probability: float,
    evaluated: Evaluated,
    pictures: Mapping[str, str | VideoDecodeError],
) -> str:
    if video.response_text is not None:
        look = f'<p class="text">{escape(_shorten(video.response_text, 2 * _TEXT_LENGTH))}</p>'
    elif isinstance(picture := pictures[video.name], VideoDecodeError):
        look = f'<p class="unread">{escape(picture)}</p>'
    else:
        look = f'<img src="{picture}" alt="frames of {escape(video.name)}, from the first to the last">'
    tags = []
    if votes:
        tags.append('<span class="tag c0">chosen by people' + (f" {votes} : {num_votes - votes}</span>"
                    if votes < num_votes else "</span>"))  # fmt: skip
    if probability > 0.5:
        tags.append('<span class="tag c3">chosen by the model</span>')
    safety = evaluated.safety[video.name]
    if safety:
        tags.append('<span class="tag c5">labelled safe</span>' if safety > 0
                    else '<span class="tag c4">labelled unsafe</span>')  # fmt: skip
    heads = [head for head in evaluated.heads if head not in LABEL_HEADS]
    scores = ", ".join(f"{head.replace('_', ' ')} {evaluated.scores[video.name][head]:+.2f}" for head in heads)
    made = f"; by {escape(video.generated_from)}" if video.generated_from else ""
    return (
        f'<div class="side">{look}<p class="tags">{"".join(tags)}</p>'
        f'<p class="scores" title="{escape(video.name)}">{scores}{made}</p></div>'
    )


def _shorten(text: str, length: int = _TEXT_LENGTH) -> str:
    return text if len(text) <= length else text[:length] + " …"
