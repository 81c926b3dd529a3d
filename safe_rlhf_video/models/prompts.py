"""The text around a prompt and what answers it; a model folder stores its name and hash, and refuses another."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias


class Special(NamedTuple):
    """A special token of the tokenizer, by its text."""

    token: str


Segments: TypeAlias = Sequence[Special | str]


@dataclass(frozen=True)
class Template:
    """A family's chat format: the video in the user's turn, then the text-to-video prompt.

    The score is read where the assistant's answer would begin, a place that has attended to all of it. A text response
    is the assistant's answer, and the score is read at the token that ends it, as Safe RLHF does.

    Attributes:
        name: Goes into model folders; another form gets another name.
        before: The text before the video, or before the prompt where there is none.
        before_prompt: The text between a video and the prompt.
        after_prompt: The end of the user's turn and the start of the assistant's.
        before_response: Further text before a text response.
        after_response: What ends it.
    """

    name: str
    before: tuple[Special | str, ...]
    before_prompt: tuple[Special | str, ...]
    after_prompt: tuple[Special | str, ...]
    before_response: tuple[Special | str, ...]
    after_response: tuple[Special | str, ...]

    def build_segments(self, prompt: str, video: Segments) -> list[Special | str]:
        """The model's input as special tokens and the texts between them.

        Args:
            prompt: The text-to-video prompt, never read for special tokens.
            video: The clip's tokens, and the texts of the family's own among them.
        """
        return _join_texts([*self.before, *video, *self.before_prompt, prompt, *self.after_prompt])

    def build_text_segments(self, prompt: str, response: str) -> list[Special | str]:
        """The same for a text response: no video, the response in the assistant's turn."""
        return _join_texts(
            [*self.before, prompt, *self.after_prompt, *self.before_response, response, *self.after_response]
        )


def _join_texts(segments: Iterable[Special | str]) -> list[Special | str]:
    # A tokenizer merges letters across our pieces; only special tokens are true boundaries.
    joined: list[Special | str] = []
    for segment in segments:
        if isinstance(segment, str) and joined and isinstance(joined[-1], str):
            joined[-1] += segment
        else:
            joined.append(segment)
    return joined
