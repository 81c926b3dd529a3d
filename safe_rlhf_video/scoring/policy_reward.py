"""Rewards a policy in training with the Lagrangian score: for TRL's GRPO, flow-GRPO and your own loops.

A policy is trained on one number per sample. Reward and cost are logged beside it, so that a collapse of one of them
is visible. Nothing here imports a trainer.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from transformers import TrainerCallback

from safe_rlhf_video.errors import CheckpointError, ConfigError, SampleError
from safe_rlhf_video.lagrangian import LagrangeMultiplier
from safe_rlhf_video.scoring.decisions import TradeOff
from safe_rlhf_video.scoring.devices import own_device
from safe_rlhf_video.scoring.score_many import score_each_once
from safe_rlhf_video.scoring.scorer import Scorer
from safe_rlhf_video.scoring.video_inputs import VideoLike, as_frames

# In a checkpoint folder of the trainer.
STATE_FILE = "lagrange_multiplier.json"

Videos: TypeAlias = Sequence[VideoLike] | np.ndarray | torch.Tensor
GenerateVideos: TypeAlias = Callable[[Sequence[str], Sequence[str]], Sequence[VideoLike]]


@dataclass(frozen=True, eq=False)
class LagrangianScores:
    """Scores of N videos, in the order in which they were given; float64, all finite.

    Attributes:
        rewards: (N,), how helpful.
        costs: (N,), how harmful; above 0 is unsafe.
        combined: (N,), the Lagrangian scores, what a policy is trained on.
        trade_off: lambda and the cost limit at that time.
    """

    rewards: np.ndarray
    costs: np.ndarray
    combined: np.ndarray
    trade_off: TradeOff


class LagrangianReward:
    """Reward and cost of a model as the reward of a policy.

    Call it as one of TRL's `reward_funcs`; `flow_grpo()` gives flow-GRPO's form, and `score` is for any other loop.

    Attributes:
        scorer: scores the videos.
        multiplier: the moving lambda; None where it is fixed.
    """

    __name__ = "lagrangian"  # TRL logs rewards/lagrangian/mean

    def __init__(
        self,
        model: Scorer | str | Path | Sequence[str | Path],
        *,
        lagrange_multiplier: float | None = None,
        cost_limit: float | None = None,
        multiplier: LagrangeMultiplier | None = None,
        generate: GenerateVideos | None = None,
        video_column: str | None = None,
        prompt_column: str | None = None,
        fps: float | None = None,
        batch_size: int = 64,
        **loading: Any,
    ) -> None:
        """`generate`, `video_column` and `prompt_column` are for TRL alone.

        Args:
            model: a scorer with both heads, or the folders of its models.
            lagrange_multiplier: lambda >= 0, fixed, a price on the cost; by default 1. (A calibrated multiplier is for
                choosing among clips; what it promises says nothing about a policy in training.)
            cost_limit: d; by default 0.
            multiplier: moves lambda by the costs of the training steps, towards its own cost limit.
            generate: makes one video for each prompt and completion (texts) of a call, in order.
            video_column: the column with the videos (a field of a `rollout_func`, say). Without `generate` and
                `video_column`, a completion is the path of its video.
            prompt_column: the column with the prompts to judge the videos for, if the policy's prompt says more.
            fps: frames per second of videos that are arrays.
            batch_size: videos scored at once, at most.
            loading: as for `Scorer.from_pretrained`; by default the device of this rank.

        Raises:
            ConfigError: two of the arguments exclude each other, or one is out of range.
            CheckpointError: a model cannot be loaded, or a reward or a cost is missing.
        """
        if multiplier is not None and (lagrange_multiplier is not None or cost_limit is not None):
            raise ConfigError(
                "multiplier has a lambda and a cost limit of its own; leave out lagrange_multiplier and cost_limit"
            )
        if generate is not None and video_column is not None:
            raise ConfigError("give either generate or video_column: both say where the videos come from")
        if batch_size < 1:
            raise ConfigError(f"batch_size: expected at least 1, got {batch_size}")
        if isinstance(model, Scorer):
            if loading:
                raise ConfigError(f"{min(loading)}: is for loading a model, and the scorer is loaded already")
            self.scorer = model
        else:
            folders = [model] if isinstance(model, str | Path) else model
            self.scorer = Scorer.from_pretrained(*folders, **{"device": own_device(), **loading})
        self._fixed = None
        if multiplier is None:
            self._fixed = self.scorer.require_trade_off(None, lagrange_multiplier, cost_limit)
        else:
            self.scorer.require_both_heads()
        self.multiplier = multiplier
        self._generate = generate
        self._video_column = video_column
        self._prompt_column = prompt_column
        self._fps = fps
        self._batch_size = batch_size
        self._lock = threading.Lock()  # guards _pending: flow-GRPO scores in threads
        self._pending: list[float] = []
        # Whether TRL is in a training step; None until a trainer has the callback.
        self._in_step: bool | None = None

    @property
    def trade_off(self) -> TradeOff:
        """The present lambda and cost limit."""
        if self._fixed is not None:
            return self._fixed
        assert self.multiplier is not None
        return TradeOff(self.multiplier.value, self.multiplier.cost_limit, "moving")

    def score(
        self, prompts: Sequence[str], videos: Sequence[VideoLike] | np.ndarray | torch.Tensor
    ) -> LagrangianScores:
        """Scores N >= 1 videos, each for its prompt, and leaves lambda as it is.

        The videos of a prompt are scored together, and equal ones once, so that their scores are equal.

        Args:
            videos: each a path, the bytes of a file, a `Video`, a list of PIL images, or an array or tensor
                (T, H, W, 3) or (T, 3, H, W), of uint8 or of floats in [0, 1]; without T it is one frame. Or one array
                of all videos.

        Raises:
            SampleError: a video has another form, or there are not as many as prompts. VideoDecodeError: a file cannot
                be read. CheckpointError: a score is not finite.
        """
        if len(prompts) != len(videos) or not len(prompts):
            raise SampleError(f"{len(prompts)} prompts for {len(videos)} videos; give at least one, each its prompt")
        frames = [as_frames(video, place) for place, video in enumerate(videos)]
        with torch.autocast(self.scorer.device.type, enabled=False):
            scores = score_each_once(self.scorer, prompts, self.scorer.read(frames, self._fps), self._batch_size)
        rewards, costs = scores["reward"], scores["cost"]
        trade_off = self.trade_off
        return LagrangianScores(rewards, costs, trade_off.combine(rewards, costs), trade_off)

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
        """Returns the Lagrangian score of each completion's video, as TRL expects it.

        Prompts and completions are texts or lists of messages; the last message of the user and the last of all count.
        With TRL's `log_metric` and `log_extra`, it logs `lagrangian/reward` and `lagrangian/cost` (means),
        `lagrangian/reward_std` and `lagrangian/cost_std` (within a prompt), `lagrangian/unsafe_rate` and
        `lagrangian/multiplier`, and in the table of completions the columns `reward` and `cost`.

        Raises:
            SampleError: a column is missing, or a prompt or completion is of another form; else as `score`.
            ConfigError: lambda is to move, and the trainer was not given `callback()`.
        """
        if self.multiplier is not None and self._in_step is None and "trainer_state" in columns:
            raise ConfigError(
                "the multiplier moves after each training step; give callbacks=[reward.callback()] to TRL"
            )
        texts = [_read_message(completion, "completion", place) for place, completion in enumerate(completions)]
        judged_for = prompts if self._prompt_column is None else _read_column(columns, self._prompt_column)
        asked = [_read_message(prompt, "prompt", place, "user") for place, prompt in enumerate(judged_for)]
        scores = self.score(asked, self._find_videos(asked, texts, columns))
        if self.multiplier is not None and self._in_step is not False:
            self._note(scores)
        _log(scores, asked, columns)
        combined: list[float] = scores.combined.tolist()
        return combined

    def flow_grpo(self, *, training: bool = True) -> Callable[..., tuple[dict[str, np.ndarray], dict[str, Any]]]:
        """Returns a reward function for flow-GRPO: of (images, prompts, metadata), returning (scores, {}).

        Scores are `avg`, which flow-GRPO trains on, and `reward`, `cost`, `unsafe` (1 or 0) and `multiplier` (lambda),
        which it logs as reward_<name>; each (N,). With a multiplier, call `update_multiplier()` once a training step.

        Args:
            training: whether the costs move lambda; False for the function of its evaluations.
        """

        def reward_fn(
            images: Videos,
            prompts: Sequence[str],
            metadata: object = None,
            **_: object,  # ref_images and only_strict, which other rewards of flow-GRPO's need
        ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
            scores = self.score(list(prompts), images)
            if training:
                self._note(scores)
            details = {
                "reward": scores.rewards,
                "cost": scores.costs,
                "unsafe": (scores.costs > 0).astype(np.float64),
                "multiplier": np.full(len(scores.costs), scores.trade_off.lagrange_multiplier),
                "avg": scores.combined,
            }
            return details, {}

        return reward_fn

    def update_multiplier(self) -> float:
        """Moves lambda once, by the costs of the training samples since the last call; without any it stays.

        If torch.distributed is initialised, all ranks must call it: it takes the costs of all ranks, in their order, so
        that lambda is the same everywhere.

        Returns:
            Lambda afterwards.

        Raises:
            ConfigError: lambda is fixed.
        """
        multiplier = self._require_moving()
        with self._lock:
            own, self._pending = self._pending, []
        if costs := _gather(own):
            multiplier.update(costs)
        return multiplier.value

    def callback(self) -> TrainerCallback:
        """Returns the callback that moves lambda in TRL after each training step, never by the costs of an evaluation.

        It saves the state of lambda in each checkpoint (`lagrange_multiplier.json`) and reads it when a run is resumed.

        Raises:
            ConfigError: lambda is fixed.
        """
        self._require_moving()
        return _MultiplierCallback(self)

    def save(self, path: Path) -> None:
        """Writes the settings and state of lambda to a JSON file.

        Raises:
            ConfigError: lambda is fixed. CheckpointError: the file cannot be written.
        """
        self._require_moving().save(path)

    def load(self, path: Path) -> None:
        """Continues from what `save` wrote; costs that have not moved lambda yet are dropped.

        Raises:
            ConfigError: lambda is fixed, or was saved with other settings. CheckpointError: the file cannot be read.
        """
        present = self._require_moving()
        loaded = LagrangeMultiplier.load(path)
        for field in fields(LagrangeMultiplier):
            was, now = getattr(loaded, field.name), getattr(present, field.name)
            if field.name not in ("log_value", "num_updates", "recent_costs") and was != now:
                raise ConfigError(
                    f"{path}: was saved with {field.name} {was}, not {now}; resume with the same settings"
                )
        with self._lock:
            self.multiplier, self._pending = loaded, []

    def _require_moving(self) -> LagrangeMultiplier:
        if self.multiplier is None:
            raise ConfigError("lambda is fixed; give multiplier=LagrangeMultiplier(...) to let it move")
        return self.multiplier

    def _note(self, scores: LagrangianScores) -> None:
        if self.multiplier is not None:
            with self._lock:
                self._pending += scores.costs.tolist()

    def _find_videos(
        self, prompts: Sequence[str], completions: Sequence[str], columns: Mapping[str, Any]
    ) -> Sequence[VideoLike]:
        if self._generate is not None:
            videos = self._generate(prompts, completions)
            if len(videos) != len(completions):
                raise SampleError(
                    f"generate gave {len(videos)} videos for {len(completions)} completions; it has to give one each"
                )
            return videos
        if self._video_column is not None:
            return _read_column(columns, self._video_column)
        for place, completion in enumerate(completions):
            if not _is_file(completion):
                raise SampleError(
                    f"completion {place} names no video file: {completion[:40]!r}; give generate= or video_column= to "
                    "LagrangianReward if videos come from elsewhere"
                )
        return completions


class _MultiplierCallback(TrainerCallback):
    """Informs a LagrangianReward when a training step begins and ends."""

    def __init__(self, reward: LagrangianReward) -> None:
        self._reward = reward

    def on_init_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._reward._in_step = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._reward._in_step = False
        assert self._reward.multiplier is not None
        if state.global_step == 0:
            return
        path = _checkpoint(args, state)
        if path.exists():  # also where lambda has moved since: a run that failed may be resumed by the same process
            self._reward.load(path)
        elif not self._reward.multiplier.num_updates:  # else the user has called load()
            raise CheckpointError(f"{path}: missing, so lambda would start again; load() the state that was saved")

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._reward._in_step = True

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._reward._in_step = False
        self._reward.update_multiplier()

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if args.should_save:
            self._reward.save(_checkpoint(args, state))


def _checkpoint(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}" / STATE_FILE


def _gather(costs: list[float]) -> list[float]:
    """The costs of all ranks."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return costs
    parts: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, costs)
    return [cost for part in parts for cost in part]


def _log(scores: LagrangianScores, prompts: Sequence[str], columns: Mapping[str, Any]) -> None:
    if log_metric := columns.get("log_metric"):
        for name, values in (("reward", scores.rewards), ("cost", scores.costs)):
            log_metric(f"lagrangian/{name}", float(values.mean()))
            if (spread := _spread(values, prompts)) is not None:
                log_metric(f"lagrangian/{name}_std", spread)
        log_metric("lagrangian/unsafe_rate", float((scores.costs > 0).mean()))
        log_metric("lagrangian/multiplier", scores.trade_off.lagrange_multiplier)
    if log_extra := columns.get("log_extra"):
        log_extra("reward", scores.rewards.tolist())
        log_extra("cost", scores.costs.tolist())


def _spread(values: np.ndarray, prompts: Sequence[str]) -> float | None:
    """Computes the standard deviation within prompts, pooled; None where each prompt has one video."""
    groups: dict[str, list[float]] = {}
    for prompt, value in zip(prompts, values.tolist(), strict=True):
        groups.setdefault(prompt, []).append(value)
    freedom = len(values) - len(groups)
    if freedom == 0:
        return None
    return float(np.sqrt(sum(np.var(group) * len(group) for group in groups.values()) / freedom))


def _read_column(columns: Mapping[str, Any], name: str) -> Sequence[Any]:
    if name not in columns:
        found = ", ".join(sorted(set(columns) - {"trainer_state", "log_extra", "log_metric"})) or "none"
        raise SampleError(f"column {name!r} is missing; there are: {found}")
    column: Sequence[Any] = columns[name]
    return column


def _read_message(value: Any, what: str, place: int, role: str | None = None) -> str:
    """Returns the text of a prompt or completion, or of the last message (of `role`) in a list of messages."""
    if isinstance(value, list | tuple):
        said = [one for one in value if isinstance(one, dict) and role in (None, one.get("role"))]
        value = said[-1].get("content") if said else None
        if isinstance(value, list):  # blocks
            value = "".join(str(block.get("text", "")) for block in value if isinstance(block, dict))
    if not isinstance(value, str):
        raise SampleError(f"{what} {place}: expected a text or a list of messages, got {type(value).__name__}")
    return value


def _is_file(name: str) -> bool:
    try:
        return Path(name).is_file()
    except (OSError, ValueError):  # too long for a name, or holding a null character
        return False
