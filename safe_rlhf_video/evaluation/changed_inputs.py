"""Changes the inputs of a model for controls: other prompts, frames in reverse, or a single frame.

A model that stays accurate under other prompts does not read the prompt. One that stays accurate with reversed frames
or a single frame does not judge motion.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np

from safe_rlhf_video.data.preferences import normalise_prompt
from safe_rlhf_video.errors import SampleError
from safe_rlhf_video.responses import Response
from safe_rlhf_video.scoring.score_many import BatchScorer, ScoreRequest
from safe_rlhf_video.video.pool import DecodePool
from safe_rlhf_video.video.sampling import Video

SHUFFLED_PROMPT = "shuffled_prompt"


def reverse_frames(video: Video) -> Video:
    """Reverses the frames and keeps the timestamps."""
    return Video(np.ascontiguousarray(video.frames[::-1]), video.timestamps)


def keep_one_frame(video: Video) -> Video:
    """Keeps only the middle frame, at time 0; the later one where two are in the middle."""
    middle = len(video.frames) // 2
    return Video(video.frames[middle : middle + 1], video.timestamps[:1])


FRAME_CHANGES: Mapping[str, Callable[[Video], Video]] = MappingProxyType(
    {"reversed_frames": reverse_frames, "single_frame": keep_one_frame}
)
CONTROLS = (SHUFFLED_PROMPT, *FRAME_CHANGES)


@dataclass(frozen=True)
class ChangedFramesScorer:
    """Applies one of `FRAME_CHANGES` to every clip before another scorer sees it; texts stay as they are.

    Attributes:
        scorer: scores the changed clips; must stay open.
        change: the name of the change.
    """

    scorer: BatchScorer
    change: str

    @property
    def fingerprint(self) -> str:
        """Names the change too, so a file of its scores counts as another model's."""
        return f"{self.scorer.fingerprint} {self.change}"

    @property
    def pool(self) -> DecodePool:
        """That of the other scorer."""
        return self.scorer.pool

    def score_batch(self, prompts: Sequence[str], responses: Sequence[Response]) -> dict[str, np.ndarray]:
        """As `ModelScorer.score_batch`, on the changed clips."""
        change = FRAME_CHANGES[self.change]
        return self.scorer.score_batch(prompts, [change(one) if isinstance(one, Video) else one for one in responses])


def shuffle_prompts(requests: Sequence[ScoreRequest], seed: int) -> list[ScoreRequest]:
    """Gives every request the prompt of another; clips of one prompt get the same one, so pairs stay pairs.

    Raises:
        SampleError: there is only one prompt.
    """
    texts = list({normalise_prompt(request.prompt): request.prompt for request in requests}.values())
    if len(texts) < 2:
        raise SampleError(f"--controls {SHUFFLED_PROMPT}: needs two prompts or more, the data have {len(texts)}")
    order = np.random.default_rng(seed).permutation(len(texts))
    # One circle through all prompts, so that no prompt keeps its own text.
    other = {
        normalise_prompt(texts[one]): texts[successor] for one, successor in zip(order, np.roll(order, 1), strict=True)
    }
    return [replace(request, prompt=other[normalise_prompt(request.prompt)]) for request in requests]
