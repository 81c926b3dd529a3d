"""Defines the configuration of a training run; torch-free, checked before any process group starts."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from safe_rlhf_video.errors import ConfigError
from safe_rlhf_video.heads import HEAD_GROUPS, HEADS, LABEL_HEADS
from safe_rlhf_video.models.config import EMBEDDED_BACKBONE, ModelConfig
from safe_rlhf_video.video.sampling import Sampling
from safe_rlhf_video.wording import did_you_mean


@dataclass(frozen=True)
class DataConfig:
    """Where comparisons and clips come from.

    Attributes:
        path: A SafeSora-format config file (.json or .json.gz), or a folder that holds one and `videos/`; or a list of
            them, which are joined. Text corpora are converted to this format first (scripts/convert.py).
        config_filename: The config's name, where `path` is a folder.
        video_dir: Where the clips are (video_dir/prompt_id/video_id.mp4), if not where SafeSora's rule says.
        frame_store: A folder that scripts/prepare_videos.py made: clips are read from it and never decoded.
        unreadable: What becomes of comparisons with a clip in the frame store's quarantine: "refuse" ends the run
            before it starts, "drop" leaves them out and says how many.
        validation_fraction: The share of prompts held out to choose the checkpoint; 0 keeps the last one.
        calibration_fraction: The share of prompts that the run does not use at all, for scripts/calibrate.py.
        leave_out_generators: Text-to-video models (`generated_from`) whose clips the run never sees: comparisons with
            one are used neither to train, nor to validate, nor to calibrate.
        workers: Decoding processes for each rank.
        timeout_s: Seconds that one clip may take to decode.
    """

    path: str | list[str]
    config_filename: str = "config.json"
    video_dir: str | None = None
    frame_store: str | None = None
    unreadable: Literal["refuse", "drop"] = "refuse"
    validation_fraction: float = 0.1
    calibration_fraction: float = 0.0
    leave_out_generators: list[str] = field(default_factory=list)
    workers: int = 2
    timeout_s: float = 60.0

    def __post_init__(self) -> None:
        _require(self.frame_store is None or bool(self.frame_store), "data.frame_store", "a folder", self.frame_store)
        _require(bool(self.path) and all(self.paths), "data.path", "a file or folder, or a list of them", self.path)
        _require(
            0.0 <= self.validation_fraction < 1.0, "data.validation_fraction", "0 <= f < 1", self.validation_fraction
        )
        _require(
            0.0 <= self.calibration_fraction < 1.0 - self.validation_fraction,
            "data.calibration_fraction",
            "0 or more, and with data.validation_fraction less than 1",
            self.calibration_fraction,
        )
        generators = self.leave_out_generators
        _require(
            all(generators) and len(set(generators)) == len(generators),
            "data.leave_out_generators",
            "names, each once",
            generators,
        )
        _require(self.workers >= 1, "data.workers", "1 or more", self.workers)
        _require(0 < self.timeout_s < math.inf, "data.timeout_s", "more than 0", self.timeout_s)
        if self.unreadable == "drop" and self.frame_store is None:
            raise ConfigError(
                "data.unreadable: only a frame store knows in advance which clips cannot be read; run "
                "scripts/prepare_videos.py and set data.frame_store to its folder"
            )

    @property
    def paths(self) -> tuple[str, ...]:
        """`path` as a tuple, however it was given."""
        return (self.path,) if isinstance(self.path, str) else tuple(self.path)


@dataclass(frozen=True)
class LossConfig:
    """Weights of the loss terms (SafeSora, arXiv 2406.14477; Safe RLHF, arXiv 2310.12773).

    Attributes:
        comparison: Bradley-Terry on the comparisons, a mean over comparisons.
        sign: The cost's sign terms from `is_safe`, a mean over videos whose label is known.
        harm: The harm labels' log loss, for each label a mean over the videos whose label is known; a mean over labels,
            ordinal ones included.
        harm_balance: How far rare classes are raised: a class of n_c of n videos weighs (n / n_c) to this power, 1 for
            equal shares of the loss, 0 for equal videos; the weights have the mean 1.
        regularization: The square of every score but the logits of harm labels, a mean over videos.
        unit: What the comparison loss is a mean over: every "comparison", or every "prompt", whose comparisons and ties
            then count together as one (InstructGPT, arXiv 2203.02155).
        ties: Comparisons labelled as ties: "leave_out", or "rao_kupper", which trains on them and on the others with
            Rao and Kupper's model in the place of Bradley-Terry's.
        tie_threshold: Theta > 1 of that model: two equal videos are called equal with (theta - 1) / (theta + 1).
    """

    comparison: float = 1.0
    sign: float = 1.0
    regularization: float = 0.001
    harm: float = 1.0
    harm_balance: float = 0.5
    unit: Literal["comparison", "prompt"] = "comparison"
    ties: Literal["leave_out", "rao_kupper"] = "leave_out"
    tie_threshold: float = 5.0

    def __post_init__(self) -> None:
        _require(1.0 < self.tie_threshold < math.inf, "loss.tie_threshold", "more than 1", self.tie_threshold)
        _require(0 <= self.harm_balance <= 1, "loss.harm_balance", "0 to 1", self.harm_balance)
        for name in ("comparison", "sign", "regularization", "harm"):
            _require(0 <= getattr(self, name) < math.inf, f"loss.{name}", "0 or more", getattr(self, name))


MOST_EPOCHS = 1_000_000


@dataclass(frozen=True)
class OptimizationConfig:
    """AdamW with linear warm-up and cosine decay.

    Attributes:
        epochs: Passes over the training prompts.
        max_steps: Stop after so many steps, whatever `epochs` says; 0 sets no limit.
        batching: "grouped" keeps the comparisons of a prompt together and encodes each of its videos once; "pairwise"
            takes every comparison by itself, as published recipes do, and encodes a video once for each of them.
        prompts_per_step: Whole prompts (pairwise: comparisons) in an optimiser step, over all ranks and micro-batches.
        micro_batch_tokens: The most tokens, padding included, that a rank takes at once; a step is cut into as many
            micro-batches as that needs, of whole prompts. A prompt that has more makes one by itself. 0 sets no limit.
        learning_rate: The adapters' peak rate.
        head_learning_rate: The heads' peak rate.
        projector_learning_rate: The projector's peak rate, where `model.trained_parts` names it.
        language_model_learning_rate: The language model's peak rate, where `model.trained_parts` names it.
        weight_decay: AdamW's decoupled decay, for each step a share of the rate.
        betas: AdamW's decay rates of the mean gradient and of the mean squared gradient.
        warmup_fraction: The share of steps in which the rate rises.
        final_fraction: The share of the peak rate that is left at the end.
        averaging: The share of the steps so far, the last ones, that make two thirds of the average of the weights that
            is validated and saved: 0 takes the last weights, 1 the mean of all (`engine.AveragingAdamW`).
        gradient_clipping: The largest gradient norm.
    """

    epochs: int = 3
    max_steps: int = 0
    batching: Literal["grouped", "pairwise"] = "grouped"
    prompts_per_step: int = 16
    micro_batch_tokens: int = 0
    learning_rate: float = 1e-4
    head_learning_rate: float = 1e-3
    projector_learning_rate: float = 2e-5
    language_model_learning_rate: float = 1e-5
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.95)
    warmup_fraction: float = 0.05
    final_fraction: float = 0.0
    averaging: float = 0.0
    gradient_clipping: float = 1.0

    def __post_init__(self) -> None:
        _require(1 <= self.epochs <= MOST_EPOCHS, "optimization.epochs", f"1 to {MOST_EPOCHS:,}", self.epochs)
        _require(self.prompts_per_step >= 1, "optimization.prompts_per_step", "1 or more", self.prompts_per_step)
        for name in ("learning_rate", "head_learning_rate", "projector_learning_rate", "language_model_learning_rate",
                     "gradient_clipping"):  # fmt: skip
            _require(0 < getattr(self, name) < math.inf, f"optimization.{name}", "more than 0", getattr(self, name))
        for name in ("max_steps", "micro_batch_tokens", "weight_decay"):
            _require(0 <= getattr(self, name) < math.inf, f"optimization.{name}", "0 or more", getattr(self, name))
        for name in ("warmup_fraction", "final_fraction", "averaging"):
            _require(0.0 <= getattr(self, name) <= 1.0, f"optimization.{name}", "0 to 1", getattr(self, name))
        _require(all(0.0 <= beta < 1.0 for beta in self.betas), "optimization.betas", "0 <= beta < 1", self.betas)


DEEPSPEED_KEYS = (
    "comms_logger",
    "communication_data_type",
    "csv_monitor",
    "dump_state",
    "flops_profiler",
    "memory_breakdown",
    "prescale_gradients",
    "steps_per_print",
    "tensorboard",
    "wall_clock_breakdown",
    "zero_optimization",
)
BUCKET_SIZE = 500_000_000  # what DeepSpeed reduces at once, its default, elements
UNSUPPORTED_ZERO_KEYS = ("offload_", "cpu_offload", "mics_", "zero_hpz_", "zero_quantized_", "zeropp_", "zenflow")


@dataclass(frozen=True)
class EngineConfig:
    """DeepSpeed.

    Attributes:
        zero_stage: What is divided among ranks: 0 nothing, 1 optimiser state, 2 gradients too, 3 all weights too.
        compile: Whether torch.compile makes the model's code; the first steps then take minutes.
        deepspeed: Further keys of DeepSpeed's own configuration (`DEEPSPEED_KEYS`), laid over what this package builds.
    """

    zero_stage: Literal[0, 1, 2, 3] = 0
    compile: bool = False
    deepspeed: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        owned = {
            "train_batch_size",
            "train_micro_batch_size_per_gpu",
            "gradient_accumulation_steps",
            "optimizer",
            "scheduler",
            "fp16",
            "bf16",
            "gradient_clipping",
        }
        if taken := sorted(owned & set(self.deepspeed)):
            raise ConfigError(
                f"engine.deepspeed.{taken[0]}: set by this package; use the sections model and optimization"
            )
        # DeepSpeed itself passes over a key that it does not know.
        if unknown := sorted(set(self.deepspeed) - set(DEEPSPEED_KEYS)):
            known = ", ".join(DEEPSPEED_KEYS)
            raise ConfigError(f"engine.deepspeed.{unknown[0]}: not among the keys that go here ({known})")
        zero = self.deepspeed.get("zero_optimization", {})
        _require(isinstance(zero, dict), "engine.deepspeed.zero_optimization", "a section of DeepSpeed's keys", zero)
        # By prefix: DeepSpeed still takes deprecated names (cpu_offload and others) for the new ones.
        if unfit := sorted(name for name in zero if name.startswith(UNSUPPORTED_ZERO_KEYS)):
            raise ConfigError(
                f"engine.deepspeed.zero_optimization.{unfit[0]}: not supported, checkpoints could not be gathered from "
                "it; leave it out"
            )
        if self.compile and self.zero_stage == 3:
            raise ConfigError(
                "engine.compile: not supported with engine.zero_stage 3, which gathers weights between the lines that "
                "would be compiled; set one of the two off"
            )


@dataclass(frozen=True)
class CheckpointConfig:
    """When to validate and save.

    Attributes:
        every_steps: Validate and save after so many steps; 0 means once an epoch.
        keep_last: Checkpoints to keep in addition to the best one.
        damaged: What becomes of a run whose last checkpoint has changed since it was written: "refuse" ends it and says
            which one is good, "go_back" goes on from that one and renames the others.
    """

    every_steps: int = 0
    keep_last: int = 1
    damaged: Literal["refuse", "go_back"] = "refuse"

    def __post_init__(self) -> None:
        _require(self.every_steps >= 0, "checkpoint.every_steps", "0 or more", self.every_steps)
        _require(self.keep_last >= 1, "checkpoint.keep_last", "1 or more", self.keep_last)


@dataclass(frozen=True)
class TrackingConfig:
    """Metrics go to <out>/metrics.jsonl, and the same rows to W&B.

    Attributes:
        wandb: "auto" is online with an API key and offline without one; there is never a prompt.
        project: The W&B project.
        log_every: Steps between two rows.
        media: Whether W&B gets more than figures: at each validation histograms of scores and a few pairs with frames,
            at the end the model folder.
    """

    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    project: str = "safe-rlhf-video"
    log_every: int = 10
    media: bool = True

    def __post_init__(self) -> None:
        _require(self.log_every >= 1, "tracking.log_every", "1 or more", self.log_every)


@dataclass(frozen=True)
class TrainConfig:
    """One training run.

    Attributes:
        out: The run folder: config.yaml, metrics.jsonl, checkpoints/, model/ (the best by validation), wandb/.
        heads: Heads to train together on one adapter, in one pass, by their names in `safe_rlhf_video/heads.py`:
            "reward", "cost", a sub-dimension of helpfulness such as "aesthetics", a label such as "harm_crime".
            "moderation" means all labels of videos, "text_moderation" all labels of texts. A comparison or label trains
            every head that learns from it. Null trains the head that the script is named for.
        data: Comparisons and clips.
        sampling: Frames a clip and their size; `size_multiple` is the backbone's patch size times its merge size. With
            the embedded backbone, frames have 32x32 pixels in multiples of 8 where no size is set.
        model: Backbone and adapter.
        loss: Weights of the loss terms.
        optimization: Steps and rates.
        engine: DeepSpeed.
        checkpoint: Validation and saving.
        tracking: Metrics.
        seed: Initial heads and adapters, order of prompts, validation and calibration splits, dropout.
        dry_run: Only say what the run would need of tokens and memory, from shapes; no weights are loaded.
    """

    out: str
    data: DataConfig
    heads: list[str] | None = None
    sampling: Sampling = field(default_factory=Sampling)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimization: OptimizationConfig = field(default_factory=OptimizationConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    seed: int = 0
    dry_run: bool = False

    def __post_init__(self) -> None:
        _require(bool(self.out), "out", "a folder", self.out)
        if self.model.backbone.path == EMBEDDED_BACKBONE:
            object.__setattr__(self, "sampling", _fit_embedded_backbone(self.sampling))
        heads = self.heads
        _require(heads is None or (bool(heads) and len(set(heads)) == len(heads)), "heads", "each head once", heads)
        for name in heads or ():
            _check_head(name)
        has_harms = any(head in LABEL_HEADS or head in HEAD_GROUPS for head in heads or ())
        if not self.loss.comparison and not self.loss.sign and not (has_harms and self.loss.harm):
            raise ConfigError("loss: comparison and sign are both 0, which leaves nothing to learn; raise one of them")
        _require(0 <= self.seed < 2**63, "seed", "0 or more", self.seed)


# What may differ when a run is resumed: it changes no weight, or as another number of ranks does, by rounding and by
# dropout's draws.
OPERATIONAL_FIELDS = ("out", "data.path", "data.video_dir", "data.frame_store", "data.unreadable", "data.workers",
                      "data.timeout_s", "checkpoint.keep_last", "checkpoint.damaged", "tracking.wandb",
                      "tracking.project", "tracking.log_every", "tracking.media", "dry_run",
                      "optimization.micro_batch_tokens", "model.gradient_checkpointing", "engine.zero_stage",
                      "engine.compile")  # fmt: skip


def _fit_embedded_backbone(sampling: Sampling) -> Sampling:
    """Gives frames the size that the embedded backbone takes, unless a size is set; the defaults suit Qwen3-VL."""
    if replace(sampling, num_frames=Sampling().num_frames) != Sampling():
        return sampling
    return replace(sampling, min_pixels=32 * 32, max_pixels=32 * 32, size_multiple=8)


def _check_head(name: str) -> None:
    known = (*HEADS, *HEAD_GROUPS)
    if name not in known:
        advice = did_you_mean(name, known) or f"give some of {', '.join(known)}"
        raise ConfigError(f"heads: there is no head {name!r}; {advice}")


def _require(condition: bool, name: str, expected: str, value: object) -> None:
    if not condition:
        raise ConfigError(f"{name}: expected {expected}, got {value!r}")
