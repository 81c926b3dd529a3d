"""The scorer: judges videos and texts for their prompts, and chooses among them, by a reward, a cost, or both."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from safe_rlhf_video import lagrangian
from safe_rlhf_video.calibration.calibrate import CalibratedMultiplier, Sample, calibrate, find_choice
from safe_rlhf_video.calibration.multiplier_calibration import Limit, StoredMultiplier, find_multiplier
from safe_rlhf_video.calibration.store import FILE_NAME, MultiplierCalibration
from safe_rlhf_video.data.datasets import PairDataset, PromptDataset, VideoDataset, load_any
from safe_rlhf_video.data.labelled_pairs import Scores
from safe_rlhf_video.errors import CheckpointError, ConfigError, SampleError
from safe_rlhf_video.heads import LABEL_HEADS
from safe_rlhf_video.models.record import resolve_model_folder
from safe_rlhf_video.responses import TextResponse
from safe_rlhf_video.scoring.best_of_n import BestOfN, choose_by_score, choose_within_limit
from safe_rlhf_video.scoring.decisions import (
    DecidedBy,
    PairScore,
    Ranking,
    TradeOff,
    judge_pair,
    judge_ranking,
    name_decider,
    resolve_trade_off,
)
from safe_rlhf_video.scoring.harms import Moderation, judge_harms
from safe_rlhf_video.scoring.model_scorer import ModelScorer
from safe_rlhf_video.scoring.score_many import score_each_once
from safe_rlhf_video.scoring.video_inputs import VideoLike


class Scorer(ModelScorer):
    """Reward and cost on one backbone, loaded once with `from_pretrained`; see `ModelScorer`."""

    def __init__(self, model_dirs: Sequence[str | Path], *arguments: Any, **options: Any) -> None:
        super().__init__(model_dirs, *arguments, **options)
        # Absolute: a multiplier may be stored later, from another current folder.
        self._folder_of = {head: folder.absolute() for head, folder in find_choice(model_dirs)}
        # A problem is reported when a multiplier is needed: another one may be given, or none be asked for.
        self._stored = StoredMultiplier()
        if len(self._folder_of) == 2:
            models = {head: self._fingerprints(folder).trained for head, folder in self._folder_of.items()}
            found = [one.multiplier for one in self._calibrations if one.multiplier is not None]
            self._stored = find_multiplier(found, models, self._folder_of)

    @property
    def can_moderate(self) -> bool:
        """Whether a head of a harm label is loaded."""
        return bool(set(LABEL_HEADS) & set(self.heads))

    @property
    def decided_by(self) -> DecidedBy:
        """What choices and orders are made by: the models that decide, and the one that is missing."""
        return name_decider(self.heads)

    @property
    def no_zero(self) -> str | None:
        """Why the zero of the cost means nothing, so that no clip can be called safe; None where it means something."""
        return next(
            (record.training.no_zero for record in self.records if "cost" in sum(record.heads_of_adapter.values(), ())),
            None,
        )

    @property
    def multiplier(self) -> MultiplierCalibration | None:
        """The multipliers that were calibrated with these two models; None without."""
        return self._stored.multiplier

    def describe(self) -> dict[str, Any]:
        """Returns model, heads and defaults as plain values for JSON.

        With a reward and a cost, `multipliers` holds what decides among n candidates for each n that has a calibrated
        multiplier, and the fields of `TradeOff` are for any other number.
        """
        calibrated = {
            head: one.temperature is not None for head, one in self.calibration.heads.items() if head in self.heads
        }
        choice: dict[str, Any] = {"heads": list(self.heads), "decided_by": self.decided_by, "calibrated": calibrated,
                                  "no_zero": self.no_zero}  # fmt: skip
        if (other := self.resolve_trade_off(1)) is not None:
            issued = () if self.multiplier is None else self.multiplier.issued
            of_number = {str(num): self.require_trade_off(num).to_dict() for num in issued}
            choice |= {**other.to_dict(), "multipliers": of_number}
        return {**asdict(self.facts), **choice}

    def resolve_trade_off(
        self, num_candidates: int | None, lagrange_multiplier: float | None = None, cost_limit: float | None = None
    ) -> TradeOff | None:
        """Returns what weighs the reward against the cost; None where one of the two is missing.

        Args:
            num_candidates: how many are chosen among; None for the reward of a policy, which chooses nothing.
            lagrange_multiplier, cost_limit: None takes the defaults of this model; a lambda that is given weighs the
                cost.

        Raises:
            CheckpointError: the stored multiplier is needed and belongs to another model.
            ConfigError: a value is out of range, or has no effect because the reward or the cost is missing.
        """
        if self.decided_by == "reward and cost":
            return self.require_trade_off(num_candidates, lagrange_multiplier, cost_limit)
        for name, value in (("lagrange_multiplier", lagrange_multiplier), ("cost_limit", cost_limit)):
            if value is not None:
                raise ConfigError(
                    f"{name}: weighs a reward against a cost, and what decides here is {self.decided_by}; leave it "
                    "out, or load the folders of both models"
                )
        return None

    def require_trade_off(
        self, num_candidates: int | None, lagrange_multiplier: float | None = None, cost_limit: float | None = None
    ) -> TradeOff:
        """As `resolve_trade_off`; raises a CheckpointError where a reward or a cost is missing."""
        self.require_both_heads()
        return resolve_trade_off(self._stored, num_candidates, lagrange_multiplier, cost_limit)

    def moderate(self, prompt: str, video: VideoLike, *, fps: float | None = None) -> Moderation:
        """Finds the harms that a video or a text shows, for its prompt.

        Raises:
            CheckpointError: no loaded folder has a head of a harm label.
        """
        if not self.can_moderate:
            raise CheckpointError(
                "no harm label has a head here; give a folder of scripts/train_moderation.py to Scorer.from_pretrained"
            )
        return self.judge_harms(self.score(prompt, video, fps=fps), isinstance(video, TextResponse))

    def judge_harms(self, scores: Mapping[str, float], is_text: bool = False) -> Moderation:
        """Finds the harms that these scores of a video or a text show; none without a head of a harm label."""
        return judge_harms(scores, self.records, is_text, self.calibration.labels, self.thresholds)

    def score_pair(
        self,
        prompt: str,
        v1: VideoLike,
        v2: VideoLike,
        *,
        lagrange_multiplier: float | None = None,
        cost_limit: float | None = None,
        fps: float | None = None,
    ) -> PairScore:
        """Judges two videos for one prompt; swapping them mirrors the result exactly.

        Without a cost model, the reward alone decides; without a reward model, the cost. The result says so.

        Args:
            v1, v2: each a path, an encoded video as bytes, a `Video`, or with `fps` a uint8 array or tensor
                (T, H, W, 3) or a list of PIL images; or a `TextResponse`.
            lagrange_multiplier: lambda >= 0; 0 ignores cost. By default the one that was calibrated for choosing
                among two, else 1.
            cost_limit: d, the cost that is allowed. By default what that one was calibrated to keep, else 0.
            fps: frames per second of arrays and images.

        Raises:
            CheckpointError: a score is not finite, or the stored multiplier is needed and belongs to another model.
            ConfigError: a lambda or a limit is out of range, or is given without a reward or a cost to weigh.
        """
        trade_off = self.resolve_trade_off(2, lagrange_multiplier, cost_limit)
        scores = score_each_once(self, [prompt] * 2, self.read([v1, v2], fps))
        pairs = {head: tuple(values.tolist()) for head, values in scores.items()}
        return judge_pair(pairs, trade_off, self.calibration.heads, self.facts, self.no_zero)

    def rank(
        self,
        prompt: str,
        videos: Iterable[VideoLike],
        *,
        lagrange_multiplier: float | None = None,
        cost_limit: float | None = None,
        fps: float | None = None,
    ) -> Ranking:
        """Puts any number of videos for one prompt in order; arguments and errors as those of `score_pair`.

        The default lambda is the one that was calibrated for choosing among as many videos, else 1.
        """
        videos = list(videos)
        trade_off = self.resolve_trade_off(len(videos), lagrange_multiplier, cost_limit)
        scores = {head: np.zeros(0) for head in self.heads}
        if videos:
            scores = score_each_once(self, [prompt] * len(videos), self.read(videos, fps))
        tables = {head: values.tolist() for head, values in scores.items()}
        return judge_ranking(tables, trade_off, self.calibration.heads, self.facts, self.no_zero)

    def best_of_n(
        self,
        prompts: Iterable[str],
        videos: Iterable[Iterable[VideoLike]],
        *,
        lagrange_multiplier: float | None = None,
        cost_limit: float | None = None,
        fps: float | None = None,
        batch_size: int = 64,
    ) -> BestOfN:
        """Chooses one of the candidates of each of many prompts.

        With `cost_limit` alone, the choice with the highest mean reward of all whose mean cost is within it
        (`lagrangian.solve_multiplier`). Else, for each prompt, the highest Lagrangian score, or of one model alone the
        highest reward or the lowest cost.

        Args:
            videos: the candidates of each prompt, at least one.
            lagrange_multiplier: by default, for each prompt, the one that was calibrated for choosing among as many
                candidates, else 1.

        Raises:
            ConfigError: the numbers of prompts and lists of candidates differ, a list is empty, both a multiplier
                and a limit are given, or one of them without a reward or a cost to weigh.
            CheckpointError: both a reward and a cost are missing; else as `score_pair`.
        """
        prompts, candidates = list(prompts), [list(row) for row in videos]
        if len(prompts) != len(candidates) or not all(candidates) or not prompts:
            raise ConfigError(
                f"best_of_n: {len(prompts)} prompts and {len(candidates)} lists of candidates; give each prompt a list "
                "of at least one video"
            )
        if lagrange_multiplier is not None and cost_limit is not None:
            raise ConfigError("best_of_n: give either lagrange_multiplier or cost_limit: the limit has its own lambda")
        # A limit has a lambda of its own, for all prompts together.
        numbers = [len(row) if cost_limit is None else None for row in candidates]
        of_number = {one: self.resolve_trade_off(one, lagrange_multiplier, cost_limit) for one in set(numbers)}
        trade_offs = [found for one in numbers if (found := of_number[one]) is not None]
        deciding = [head for head in ("reward", "cost") if head in self.heads]
        if not deciding:
            raise CheckpointError("a choice needs a reward or a cost model, and both are missing; give a folder of one")
        sources = [self.to_source(video, fps) for row in candidates for video in row]
        asked = [prompt for prompt, row in zip(prompts, candidates, strict=True) for _ in row]
        scores = self.iterate(asked, sources, batch_size)
        rows = [[next(scores) for _ in row] for row in candidates]
        table: dict[str, list[list[float]]] = {head: [[one[head] for one in row] for row in rows] for head in deciding}
        return choose_by_score(table, trade_offs) if cost_limit is None else choose_within_limit(table, cost_limit)

    def calibrate_multiplier(
        self,
        data: str | Path | PairDataset | VideoDataset,
        *,
        cost_limit: float | None = None,
        harm_rate_limit: float | None = None,
        confidence: float = lagrangian.CONFIDENCE,
        train_prompts: Sequence[str] | None = None,
        batch_size: int = 64,
    ) -> MultiplierCalibration:
        """Finds the lambdas that hold a limit, stores them in the model folders and uses them from now on.

        One for each number of candidates (`calibrate_multiplier`). `scripts/calibrate.py --harm_rate_limit` does the
        same.

        Args:
            data: comparisons or clips in SafeSora's format, or their file. The clips of a prompt are its candidates;
                only prompts that training held out are used (`calibration.held_out`).
            cost_limit: the highest mean cost of the chosen.
            harm_rate_limit: in [0, 1], the highest share of unsafe clips among the chosen, by labels; clips without a
                label are left out.
            confidence: 1 less the probability that a wrong multiplier is issued for a number of candidates.
            train_prompts: texts that the models were trained on, if their folders do not say what was held out.

        Raises:
            ConfigError: not exactly one limit.
            SampleError: the data are too few, or no multiplier holds the limit for any number of candidates.
            CheckpointError: a head is missing, or a folder cannot be written.
        """
        self.require_both_heads()
        limit = Limit(cost_limit, harm_rate_limit, confidence)
        dataset = load_any(data) if isinstance(data, str | Path) else data
        if isinstance(dataset, PromptDataset):
            raise SampleError("a multiplier is calibrated on comparisons or clips, not on prompts alone")

        def score(_: object, samples: Sequence[Sample]) -> Scores:
            return self.score_samples(dataset, samples, batch_size)

        samples = dataset.pairs if isinstance(dataset, PairDataset) else dataset.videos
        folders = list(dict.fromkeys(self._folder_of.values()))
        (done,) = calibrate(folders, samples, str(dataset.config_file), score, limit=limit, train_prompts=train_prompts)
        assert isinstance(done, CalibratedMultiplier)
        self._stored = StoredMultiplier(done.multiplier)
        return done.multiplier


def score_pair(
    prompt: str, v1: VideoLike, v2: VideoLike, *, model: str | Path | Sequence[str | Path], **options: Any
) -> PairScore:
    """Judges two videos for one prompt with the reward and cost folders in `model`; the scorer stays loaded.

    Args:
        model: one folder that holds both heads, or several; without a cost, the reward decides alone.
        options: as for `Scorer.score_pair`, and `device`, `backbone`, `workers`, `calibrated` as for
            `Scorer.from_pretrained`.
    """
    loading = {name: options.pop(name) for name in ("device", "backbone", "workers", "calibrated") if name in options}
    folders = [
        resolve_model_folder(folder).resolve() for folder in ([model] if isinstance(model, str | Path) else model)
    ]
    # A folder that was trained or calibrated again has files of another time.
    files = [folder / name for folder in folders for name in ("model.json", FILE_NAME)]
    times = tuple(file.stat().st_mtime_ns if file.exists() else 0 for file in files)
    return _load_scorer(tuple(folders), times, **loading).score_pair(prompt, v1, v2, **options)


@lru_cache(maxsize=2)
def _load_scorer(folders: tuple[Path, ...], times: tuple[int, ...], **options: Any) -> Scorer:
    return Scorer.from_pretrained(*folders, **options)
