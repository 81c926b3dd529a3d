"""What a backbone family is to the rest of the package: all that differs between families, and nothing else."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from safe_rlhf_video.errors import ConfigError
from safe_rlhf_video.models.prompts import Special, Template
from safe_rlhf_video.video.sampling import Fit, Sampling


@dataclass(frozen=True)
class EncodedVideo:
    """One clip as its family wants it.

    Attributes:
        pixels: What the vision tower takes of it, one row a patch or a frame.
        size: Height and width of its frames.
        times: Seconds of every frame.
    """

    pixels: Tensor
    size: tuple[int, int]
    times: tuple[float, ...]


@dataclass(frozen=True)
class Family(ABC):
    """How the backbones of one family are fed; an instance holds the numbers of one checkpoint's processor.

    A clip is `steps` (frames, or temporal patches of several) of so many video tokens each.

    Attributes:
        mean, std: What frames are normalised with, of values in 0 .. 1.
        template: The text around prompt and video.
        video_token: What the vision tower's states take the place of.
        specials: Every special token that inputs are made of: a tokenizer must have them.
        language_model: The name of the language model inside the backbone; adapters go to its linear layers.
        vision_tower: The name of the module that sees videos. It is frozen but for a projector inside it.
        projector: The names of the modules that map the vision tower's states to the language model's.
        fit: What `sampling.fit` must be.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    template: ClassVar[Template]
    video_token: ClassVar[Special]
    specials: ClassVar[tuple[Special, ...]]
    language_model: ClassVar[str] = "language_model"
    vision_tower: ClassVar[str]
    projector: ClassVar[tuple[str, ...]]
    fit: ClassVar[Fit] = "aspect"

    @classmethod
    @abstractmethod
    def build(cls, processor: Mapping[str, Any], config: PreTrainedConfig) -> Family:
        """From the fields of the video processor's JSON file and config.json.

        Raises:
            KeyError, TypeError, ValueError: a field is missing or damaged, or the two do not fit each other.
        """

    @staticmethod
    @abstractmethod
    def token_ids(config: PreTrainedConfig) -> dict[Special, int]:
        """The ids that config.json gives to special tokens; the tokenizer must agree."""

    @property
    @abstractmethod
    def size_multiple(self) -> int:
        """Frames must be multiples of this in height and width; with another fit than "aspect", exactly this."""

    @abstractmethod
    def count_steps(self, num_frames: int) -> int:
        """Steps of a clip of so many frames."""

    @abstractmethod
    def count_step_tokens(self, height: int, width: int) -> int:
        """Video tokens of each step."""

    @abstractmethod
    def encode(self, pixels: Tensor) -> Tensor:
        """Normalised frames, float32 (T, H, W, 3), in the vision tower's layout."""

    def step_seconds(self, times: Sequence[float]) -> list[float]:
        """The time of each step, from those of the frames; a frame a step unless the family merges some."""
        return list(times)

    @classmethod
    @abstractmethod
    def video_segments(cls, seconds: Sequence[float], step_tokens: int) -> list[Special | str]:
        """The clip's part of the input: its video tokens, and what the family writes about times.

        Args:
            seconds: The time of each step.
            step_tokens: Video tokens of each step.
        """

    @abstractmethod
    def collate(self, videos: Sequence[EncodedVideo], is_video: Tensor) -> dict[str, Tensor]:
        """The model's inputs besides token ids and their mask; all but pixels on the device of `is_video`.

        Args:
            videos: The clips of a batch in order; there may be none.
            is_video: (N, L), where `input_ids` holds video tokens.
        """

    def add_positions(self, model: PreTrainedModel, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """The inputs with what the model would otherwise read back from the device to compute: here, on the host."""
        return inputs

    @abstractmethod
    def run_vision(self, model: PreTrainedModel, inputs: Mapping[str, Tensor]) -> dict[str, Any]:
        """Run the vision tower and the projector.

        Args:
            model: The backbone, without adapters.
            inputs: As `models.inputs.build_inputs` makes them.

        Returns:
            The backbone's inputs with the clips' states in place of their pixels: the language model is left to run.
        """

    def count_video_tokens(self, num_frames: int, height: int, width: int) -> int:
        """Video tokens of a clip; times and frames' starts and ends, where a family writes them, come on top."""
        return self.count_steps(num_frames) * self.count_step_tokens(height, width)

    def most_video_tokens(self, sampling: Sampling) -> int:
        """Video tokens of the largest clip that `sampling` lets through."""
        multiple = self.size_multiple
        # Every block of size_multiple x size_multiple pixels has as many tokens.
        blocks = max(1, sampling.max_pixels // multiple**2)
        return self.count_steps(sampling.num_frames) * blocks * self.count_step_tokens(multiple, multiple)

    def check_size(self, height: int, width: int) -> None:
        """Raise ConfigError where the backbone cannot take frames of this size."""
        multiple = self.size_multiple
        if self.fit == "aspect" and (height % multiple or width % multiple):
            raise ConfigError(
                f"frames of {height}x{width} pixels do not fit the backbone: both must be multiples of {multiple}; "
                "set sampling.size_multiple to it"
            )
        if self.fit != "aspect" and (height, width) != (multiple, multiple):
            raise ConfigError(
                f"frames of {height}x{width} pixels do not fit the backbone: it takes squares of {multiple}; set "
                f"sampling.fit to {self.fit}, sampling.size_multiple to {multiple}, min_pixels and max_pixels to "
                f"{multiple**2}"
            )

    def check_sampling(self, sampling: Sampling, backbone: str, max_tokens: int) -> None:
        """Raise ConfigError where clips sampled like this are not what the backbone takes.

        Args:
            backbone: Its path, for the message.
            max_tokens: The longest input it was made for.
        """
        multiple = self.size_multiple
        if sampling.size_multiple != multiple:
            raise ConfigError(
                f"sampling.size_multiple: the backbone {backbone} takes frames in multiples of {multiple} pixels, got "
                f"{sampling.size_multiple}; set it to {multiple}"
            )
        if sampling.fit != self.fit:
            raise ConfigError(
                f"sampling.fit: the backbone {backbone} takes frames with fit {self.fit}, got {sampling.fit}; set it "
                f"to {self.fit}"
            )
        most = self.most_video_tokens(sampling)
        if most > max_tokens:
            raise ConfigError(
                f"sampling: {sampling.num_frames} frames of up to {sampling.max_pixels} pixels make {most} tokens, the "
                f"backbone {backbone} takes {max_tokens}; lower sampling.num_frames or sampling.max_pixels"
            )

    @classmethod
    def template_hash(cls) -> str:
        """Identifies the form of the input, so that a model is never scored with another than it was trained with."""
        forms = (
            cls.template.build_segments("{prompt}", cls.video_segments([0.0, 1.0], 2)),
            cls.template.build_text_segments("{prompt}", "{response}"),
        )
        return hashlib.sha256(repr(forms).encode()).hexdigest()[:16]


def normalise(pixels: Tensor, family: Family) -> Tensor:
    """uint8 values as float32 with the family's mean and deviation; colours in the last dimension."""
    # Scale and shift in one step, as the official processors do.
    mean, std = (
        (255.0 * torch.tensor(value)).to(pixels.device, non_blocking=True) for value in (family.mean, family.std)
    )
    return (pixels.float() - mean) / std


def three_numbers(values: Sequence[float]) -> tuple[float, float, float]:
    """A mean or a deviation as a processor's JSON file has it."""
    red, green, blue = map(float, values)
    return red, green, blue
