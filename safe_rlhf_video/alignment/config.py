"""Which text-to-video model to run, and how; plain dataclasses, no torch, so that command lines answer at once."""

from __future__ import annotations

from dataclasses import dataclass

from safe_rlhf_video.errors import ConfigError


@dataclass(frozen=True)
class GeneratorConfig:
    """A text-to-video model, and the clips that it is to make.

    Attributes:
        path: A pipeline's folder in diffusers' form, or a hub id.
        revision: The hub revision (branch, tag or commit); None for a folder.
        lora: A folder with `pytorch_lora_weights.safetensors`, or None.
        num_frames, height, width: Of a clip; None takes what the family's own pipeline does.
        num_steps: Steps from noise to a clip.
        guidance: How far a prompt is exaggerated (classifier-free guidance); above 1, a step takes two calls of the
            network. None takes what the family's own pipeline does.
    """

    path: str
    revision: str | None = None
    lora: str | None = None
    num_frames: int | None = None
    height: int | None = None
    width: int | None = None
    num_steps: int = 50
    guidance: float | None = None

    def __post_init__(self) -> None:
        for name in ("num_frames", "height", "width", "num_steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}: expected 1 or more, got {value}")
        if self.guidance is not None and not 1.0 <= self.guidance <= 100.0:
            raise ConfigError(f"guidance: expected 1 to 100, got {self.guidance}")
