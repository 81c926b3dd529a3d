"""The scorer: trained models on one backbone, loaded once, that judge videos and texts for their prompts."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import torch
from PIL.Image import Image

from safe_rlhf_video import lagrangian
from safe_rlhf_video.calibration import fit as calibration
from safe_rlhf_video.calibration.fit import Calibration, HeadCalibration, LabelCalibration, MultiplierCalibration
from safe_rlhf_video.calibration.fit_multiplier import (
    fit_multiplier,
    folders_of_choice,
    group_candidates,
    store_multiplier,
)
from safe_rlhf_video.calibration.held_out import held_out
from safe_rlhf_video.data.datasets import PairDataset, PromptDataset, VideoDataset, load_any
from safe_rlhf_video.data.preferences import videos_of
from safe_rlhf_video.data.records import PairSample, VideoSample
from safe_rlhf_video.errors import CheckpointError, ConfigError, SampleError, VideoDecodeError
from safe_rlhf_video.heads import HEADS, LABEL_HEADS
from safe_rlhf_video.models.fingerprints import fingerprint_trained
from safe_rlhf_video.models.folder import fingerprint_weights, load_models
from safe_rlhf_video.models.inputs import build_inputs
from safe_rlhf_video.models.record import read_record, resolve_model_folder
from safe_rlhf_video.responses import Response, TextResponse
from safe_rlhf_video.scoring.decisions import ModelFacts, PairScore, Ranking, TradeOff, judge_pair, judge_ranking
from safe_rlhf_video.scoring.harms import Moderation, judge_harms
from safe_rlhf_video.scoring.score_many import ScoreRequest, Source, raise_unreadable, score_each_once, score_many
from safe_rlhf_video.video.pool import DecodePool
from safe_rlhf_video.video.sampling import Video, sample_video

# A path, bytes of a file, a Video, a TextResponse, or, with fps=, a uint8 array or tensor (T, H, W, 3) or a list of PIL
# images.
VideoLike = Any


@dataclass(frozen=True)
class BestOfN:
    """One of the candidates of each of P prompts; tuples are (P,).

    Attributes:
        chosen: index among the prompt's candidates.
        rewards, costs: of the chosen.
        trade_off: what decided; None where a cost limit was given that nothing meets.
        is_feasible: whether any choice meets the cost limit; if not, the chosen are the least costly. None without one.
    """

    chosen: tuple[int, ...]
    rewards: tuple[float, ...]
    costs: tuple[float, ...]
    trade_off: TradeOff | None
    is_feasible: bool | None


class Scorer:
    """Reward and cost on one backbone, loaded once.

    Build it with `from_pretrained`. Paths are decoded in child processes, where a broken file can do no harm; a `with`
    block stops them at its end.
    """

    def __init__(
        self,
        model_dirs: Sequence[str | Path],
        device: torch.device,
        backbone: str | None,
        workers: int,
        calibrated: bool = True,
    ) -> None:
        self.device = device
        self.records = [read_record(folder) for folder in model_dirs]
        # Before the backbone is loaded: a stale calibration is told at once.
        read = _read_calibrations(model_dirs if calibrated else ())
        self.calibration = _join_calibrations(read)
        self.model, self._backbone, self.record = load_models(model_dirs, device, backbone)
        self._workers = workers
        self.pool = DecodePool(self.record.sampling, num_workers=workers)
        self.fingerprint = fingerprint_weights(model_dirs)
        self._folder_of = dict(folders_of_choice(model_dirs))
        self.multiplier: MultiplierCalibration | None = None
        # Told when it is needed, not now: another multiplier may be given, or none be asked for.
        self._stale_multiplier: str | None = None
        self._adopt_multiplier([one.multiplier for one in read if one.multiplier is not None])

    def _adopt_multiplier(self, found: Sequence[MultiplierCalibration]) -> None:
        """Take the one that was calibrated with these two models, whichever of their folders holds it."""
        if not found or len(self._folder_of) < 2:
            return
        names = {head: fingerprint_trained(folder) for head, folder in self._folder_of.items()}
        fitting = [one for one in found if one.models == names]
        advice = f"run {calibration.COMMAND} with these two and a limit, or give lagrange_multiplier"
        if not fitting:
            head = next(head for head, name in names.items() if name != found[-1].models[head])
            self._stale_multiplier = (
                f"{self._folder_of[head]}: the stored multiplier was calibrated with another {head} model; {advice}"
            )
        elif any(one != fitting[0] for one in fitting):
            self._stale_multiplier = f"the folders hold two multipliers, {fitting[0]} and {fitting[1]}; {advice}"
        else:
            self._stale_multiplier, self.multiplier = None, fitting[0]

    @classmethod
    def from_pretrained(
        cls,
        *model_dirs: str | Path,
        device: str = "auto",
        backbone: str | None = None,
        workers: int = 2,
        calibrated: bool = True,
    ) -> Self:
        """Load one or more model folders (a reward and a cost, say) onto one backbone.

        Args:
            device: "auto" takes CUDA where there is one.
            backbone: the folder of the backbone, if it lies elsewhere than in training; its weights must be the same.
            workers: decoding processes.
            calibrated: whether to read the folders' calibrations, where `scripts/calibrate.py` wrote them.

        Raises:
            CheckpointError: a folder is no model folder, the folders do not fit each other or the backbone, or a
                calibration is damaged or belongs to other weights.
            ConfigError: there is no such device.
        """
        return cls(model_dirs, _resolve_device(device), backbone, workers, calibrated)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def heads(self) -> tuple[str, ...]:
        """The heads of the loaded folders."""
        return tuple(head for head in HEADS if head in self.model.score_heads)

    @property
    def can_moderate(self) -> bool:
        """Whether a head of a harm label is loaded."""
        return bool(set(LABEL_HEADS) & set(self.heads))

    @property
    def facts(self) -> ModelFacts:
        """What made the scores."""
        return ModelFacts(self.fingerprint, self.record.backbone.path, self.record.sampling.to_dict())

    @property
    def lagrange_multiplier(self) -> float:
        """Lambda where none is given: the stored one, else 1.

        Raises:
            CheckpointError: the stored one belongs to another model.
        """
        return self.resolve_trade_off().lagrange_multiplier

    @property
    def cost_limit(self) -> float:
        """The cost limit where none is given: that of the stored multiplier, else 0."""
        return self.resolve_trade_off().cost_limit

    def describe(self) -> dict[str, Any]:
        """Model, heads and defaults, as plain values for JSON."""
        choice: dict[str, Any] = {}
        if len(self._folder_of) == 2:
            trade_off = self.resolve_trade_off()
            choice = {
                "lagrange_multiplier": trade_off.lagrange_multiplier,
                "cost_limit": trade_off.cost_limit,
                "multiplier_source": trade_off.source,
                "weighed": trade_off.weighed,
            }
        calibrated = {
            head: one.temperature is not None for head, one in self.calibration.heads.items() if head in self.heads
        }
        return {**asdict(self.facts), "heads": list(self.heads), "calibrated": calibrated, **choice}

    @property
    def thresholds(self) -> dict[str, np.ndarray]:
        """The scores that part the K levels of each ordinal head: head -> (K - 1,)."""
        return {head: found.detach().double().cpu().numpy() for head, found in self.model.thresholds().items()}

    def read(self, videos: Sequence[VideoLike], fps: float | None = None) -> list[Response]:
        """Sample videos as the model was trained: files and bytes are decoded, arrays are picked from and resized.

        Raises:
            VideoDecodeError: a file cannot be read. SampleError: an array without `fps`, or of another form.
        """
        # Arrays first: a wrong one is said before any file is decoded.
        sampled: list[Response | None] = [
            None if isinstance(video, str | Path | bytes) else self._sample(video, fps) for video in videos
        ]
        if any(isinstance(video, bytes) for video in videos):
            decoded = iter(self._decode_with_bytes(videos))
        else:
            decoded = iter(self.pool.read([Path(video) for video in videos if isinstance(video, str | Path)]))
        return [next(decoded) if video is None else video for video in sampled]

    def _decode_with_bytes(self, videos: Sequence[VideoLike]) -> list[Video]:
        """The paths and bytes among some videos, decoded; bytes lie in a folder of their own meanwhile."""
        with tempfile.TemporaryDirectory(prefix="safe_rlhf_video-") as scratch:
            files: dict[Path, str] = {}  # those of bytes, and what they are called
            paths = []
            for place, video in enumerate(videos):
                if isinstance(video, bytes):
                    paths.append(Path(scratch, f"{place}"))
                    paths[-1].write_bytes(video)
                    files[paths[-1]] = f"videos[{place}], given as bytes"
                elif isinstance(video, str | Path):
                    paths.append(Path(video))
            try:
                return self.pool.read(paths)
            except VideoDecodeError as error:
                text = str(error)
                for path, name in files.items():
                    text = text.replace(str(path), name)
                raise VideoDecodeError(text) from error

    def score_batch(self, prompts: Sequence[str], responses: Sequence[Response]) -> dict[str, np.ndarray]:
        """Score N >= 1 sampled videos or texts in one batch.

        Returns:
            head -> float64 (N,).

        Raises:
            CheckpointError: a score is not finite.
        """
        inputs = build_inputs(self._backbone, prompts, responses, self.device)
        with torch.inference_mode():
            output = self.model(inputs)
        scores = {head: values.double().cpu().numpy() for head, values in output.items()}
        for head, values in scores.items():
            if not np.isfinite(values).all():
                bad = prompts[int(np.flatnonzero(~np.isfinite(values))[0])]
                raise CheckpointError(
                    f"the {head} of a video for the prompt {bad[:60]!r} is not finite: the model diverged"
                )
        return scores

    def score(self, prompt: str, video: VideoLike, *, fps: float | None = None) -> dict[str, float]:
        """Score one video for its prompt.

        Returns:
            head -> score, e.g. {"reward": 1.2, "cost": -0.4}.
        """
        scores = self.score_batch([prompt], self.read([video], fps))
        return {head: float(values[0]) for head, values in scores.items()}

    def moderate(self, prompt: str, video: VideoLike, *, fps: float | None = None) -> Moderation:
        """Which harms a video or a text shows, for its prompt.

        Raises:
            CheckpointError: no loaded folder has a head of a harm label.
        """
        if not self.can_moderate:
            raise CheckpointError(
                "no harm label has a head here; give a folder of scripts/train_moderation.py to Scorer.from_pretrained"
            )
        return self.judge_harms(self.score(prompt, video, fps=fps), isinstance(video, TextResponse))

    def judge_harms(self, scores: Mapping[str, float], is_text: bool = False) -> Moderation:
        """Which harms a video or a text with these scores shows; nothing without a head of a harm label."""
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
        """Judge two videos for one prompt; swapping them mirrors the result exactly.

        Args:
            v1, v2: each a path, an encoded video as bytes, a `Video`, or with `fps` a uint8 array or tensor
                (T, H, W, 3) or a list of PIL images; or a `TextResponse`.
            lagrange_multiplier: lambda >= 0; 0 ignores cost. By default the stored one, else 1.
            cost_limit: d, the cost that is allowed. By default that of the stored multiplier, else 0.
            fps: frames a second of arrays handed in.

        Raises:
            CheckpointError: a reward or a cost is missing, a score is not finite, or the stored multiplier is needed
                and belongs to another model.
        """
        trade_off = self.resolve_trade_off(lagrange_multiplier, cost_limit)
        scores = score_each_once(self, [prompt] * 2, self.read([v1, v2], fps))
        pairs = {head: tuple(values.tolist()) for head, values in scores.items()}
        return judge_pair(pairs, trade_off, self.calibration.heads, self.facts)

    def rank(
        self,
        prompt: str,
        videos: Sequence[VideoLike],
        *,
        lagrange_multiplier: float | None = None,
        cost_limit: float | None = None,
        fps: float | None = None,
    ) -> Ranking:
        """Put any number of videos for one prompt in order; arguments and errors as those of `score_pair`."""
        trade_off = self.resolve_trade_off(lagrange_multiplier, cost_limit)
        scores = {head: np.zeros(0) for head in self.heads}
        if videos:
            scores = score_each_once(self, [prompt] * len(videos), self.read(videos, fps))
        tables = {head: values.tolist() for head, values in scores.items()}
        return judge_ranking(tables, trade_off, self.calibration.heads, self.facts)

    def best_of_n(
        self,
        prompts: Sequence[str],
        videos: Sequence[Sequence[VideoLike]],
        *,
        lagrange_multiplier: float | None = None,
        cost_limit: float | None = None,
        fps: float | None = None,
        batch_size: int = 64,
    ) -> BestOfN:
        """Choose one of the candidates of each of many prompts.

        With `cost_limit` alone, the choice that has the most mean reward of all those whose mean cost is within it
        (`lagrangian.solve_multiplier`); else prompt by prompt the highest Lagrangian score, of equals the least cost.

        Args:
            videos: the candidates of each prompt, of any numbers from 1.
            lagrange_multiplier: by default the stored one, else 1.

        Raises:
            ConfigError: there are not as many lists of candidates as prompts, an empty one, or both a multiplier and a
                limit. CheckpointError: as `score_pair`.
        """
        if len(prompts) != len(videos) or not all(len(row) for row in videos) or not len(prompts):
            raise ConfigError(
                f"best_of_n: {len(prompts)} prompts and {len(videos)} lists of candidates; give each prompt a list of "
                "at least one video"
            )
        if cost_limit is not None and lagrange_multiplier is not None:
            raise ConfigError("best_of_n: give either lagrange_multiplier or cost_limit: the limit has its own lambda")
        trade_off: TradeOff | None = None
        if cost_limit is None:
            trade_off = self.resolve_trade_off(lagrange_multiplier, None)
        else:
            self.require_both_heads()
            lagrangian.check_limit(cost_limit, None)
        sources = [self._source(video, fps) for row in videos for video in row]
        scores = self.iterate(
            [prompt for prompt, row in zip(prompts, videos, strict=True) for _ in row], sources, batch_size
        )
        rows = [[next(scores) for _ in row] for row in videos]
        rewards, costs = ([[one[head] for one in row] for row in rows] for head in ("reward", "cost"))
        solution = None
        if trade_off is not None:
            weights = [lagrangian.weigh(np.array(row), trade_off.weighed) for row in costs]
            chosen = lagrangian.select(rewards, weights, trade_off.lagrange_multiplier)
        else:
            assert cost_limit is not None
            solution = lagrangian.solve_multiplier(rewards, costs, cost_limit=cost_limit)
            best = solution.deterministic or solution.least
            chosen = best.chosen.tolist()
            source = f"the best for a mean cost up to {cost_limit:g} on these prompts"
            multiplier = solution.lagrange_multiplier
            trade_off = None if multiplier is None else TradeOff(multiplier, cost_limit, source)
        return BestOfN(
            chosen=tuple(chosen),
            rewards=tuple(row[at] for row, at in zip(rewards, chosen, strict=True)),
            costs=tuple(row[at] for row, at in zip(costs, chosen, strict=True)),
            trade_off=trade_off,
            is_feasible=None if solution is None else solution.is_feasible,
        )

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
        """Find the lambda that holds a limit on new prompts, store it in the model folders and use it from now on.

        See `lagrangian.confident_multiplier`. `scripts/calibrate.py --harm_rate_limit` does the same.

        Args:
            data: comparisons or clips in SafeSora's format, or where they lie. Each prompt's clips are its candidates;
                only prompts that training held out are used (`calibration.held_out`).
            cost_limit: what the mean cost of the chosen may be.
            harm_rate_limit: in [0, 1], what share of the chosen may be unsafe, by labels; clips without are left out.
            confidence: of the promise.
            train_prompts: texts that the models were trained on, where their folders do not say what was held out.

        Raises:
            ConfigError: not exactly one limit. SampleError: the data are too few, or no multiplier holds the limit.
            CheckpointError: a head is missing, or a folder cannot be written.
        """
        self.require_both_heads()
        lagrangian.check_limit(cost_limit, harm_rate_limit)
        dataset = load_any(data) if isinstance(data, str | Path) else data
        if isinstance(dataset, PromptDataset):
            raise SampleError("a multiplier is calibrated on comparisons or clips, not on prompts alone")
        samples: list[PairSample | VideoSample] = []
        samples += dataset.pairs if isinstance(dataset, PairDataset) else dataset.videos
        for folder in dict.fromkeys(self._folder_of.values()):
            samples = held_out(samples, str(dataset.config_file), folder, read_record(folder).training, train_prompts)
        videos = list({video.name: video for sample in samples for video in videos_of(sample)}.values())
        files = iter(dataset.video_files([video for video in videos if video.response_text is None]))
        sources: list[Source] = [
            next(files) if video.response_text is None else TextResponse(video.response_text) for video in videos
        ]
        rows = list(self.iterate([video.prompt_text for video in videos], sources, batch_size))
        rewards, costs = (
            {video.name: row[head] for video, row in zip(videos, rows, strict=True)} for head in ("reward", "cost")
        )
        fitted = fit_multiplier(
            group_candidates(samples, rewards, costs, labelled=harm_rate_limit is not None),
            self._folder_of,
            cost_limit=cost_limit,
            harm_rate_limit=harm_rate_limit,
            confidence=confidence,
        )
        store_multiplier(fitted, self._folder_of)
        self._adopt_multiplier([fitted])
        return fitted

    def iterate(
        self, prompts: Sequence[str], sources: Sequence[Source], batch_size: int = 64
    ) -> Iterator[dict[str, float]]:
        """Score many files or texts, decoding ahead of the model; yields one {head: score} each, in order.

        Args:
            sources: each a file, a text, or a function that reads a sampled video when it is its turn.

        Raises:
            VideoDecodeError: when it is the turn of a file that cannot be read.
            ConfigError: there are not as many prompts as sources, or the batch size is not positive.
        """
        if len(prompts) != len(sources):
            raise ConfigError(f"{len(prompts)} prompts for {len(sources)} videos; give each its prompt")
        requests = [ScoreRequest("", prompt, source) for prompt, source in zip(prompts, sources, strict=True)]
        return raise_unreadable(score_many(self, requests, batch_size))

    def close(self) -> None:
        """Stop the decoding processes; the next file starts them again."""
        self.pool.close()
        self.pool = DecodePool(self.record.sampling, num_workers=self._workers)

    def resolve_trade_off(self, lagrange_multiplier: float | None = None, cost_limit: float | None = None) -> TradeOff:
        """What decides, with the defaults of this model for what is None; a lambda that is given weighs the cost.

        Raises:
            CheckpointError: a reward or a cost is missing, or the stored multiplier is needed and belongs to another
                model. ConfigError: a value is out of range.
        """
        self.require_both_heads()
        stored = self.multiplier
        if cost_limit is None:
            cost_limit = stored.limit if stored is not None and stored.constraint == "cost" else 0.0
        if lagrange_multiplier is not None:
            trade_off = TradeOff(float(lagrange_multiplier), float(cost_limit))
        elif self._stale_multiplier is not None:
            raise CheckpointError(self._stale_multiplier)
        elif stored is None:
            trade_off = TradeOff(1.0, float(cost_limit), "the default")
        else:
            trade_off = TradeOff(stored.lagrange_multiplier, float(cost_limit), str(stored), stored.weighed)
        trade_off.score(0.0, 0.0)  # a wrong value is said before any work
        return trade_off

    def _source(self, video: VideoLike, fps: float | None) -> Source:
        """For `iterate`: a file is decoded ahead of its turn, everything else is read when it comes."""
        if isinstance(video, str | Path):
            return Path(video)
        return video if isinstance(video, TextResponse) else lambda: cast(Video, self.read([video], fps)[0])

    def _sample(self, video: VideoLike, fps: float | None) -> Response:
        if isinstance(video, TextResponse):
            return video
        if isinstance(video, Video):
            frames, timestamps = video.frames, video.timestamps
        else:
            frames = _frames_array(video)
            if fps is None:
                raise SampleError("a video given as an array needs fps= (frames a second): the backbone reads times")
            if not (isinstance(fps, int | float | np.number) and math.isfinite(fps) and fps > 0):
                raise SampleError(f"fps: expected a positive number of frames a second, got {fps!r}")
            timestamps = np.arange(len(frames)) / float(fps)
        try:
            return sample_video(frames, timestamps, self.record.sampling)
        except VideoDecodeError as error:
            raise SampleError(f"a video given as an array: {error}") from error

    def require_both_heads(self) -> None:
        """Raise a CheckpointError unless both a reward and a cost are loaded."""
        if missing := [head for head in ("reward", "cost") if head not in self.heads]:
            raise CheckpointError(
                f"choosing between videos needs a reward and a cost model, the {missing[0]} is missing; "
                "give both folders to Scorer.from_pretrained"
            )


def score_pair(
    prompt: str, v1: VideoLike, v2: VideoLike, *, model: str | Path | Sequence[str | Path], **options: Any
) -> PairScore:
    """Judge two videos for one prompt with the reward and cost folders in `model`; the scorer stays loaded.

    Args:
        model: one folder that holds both heads, or several.
        options: as for `Scorer.score_pair`, and `device`, `backbone`, `workers`, `calibrated` as for
            `Scorer.from_pretrained`.
    """
    loading = {name: options.pop(name) for name in ("device", "backbone", "workers", "calibrated") if name in options}
    folders = [
        resolve_model_folder(folder).resolve() for folder in ([model] if isinstance(model, str | Path) else model)
    ]
    # The times tell a folder that was trained or calibrated anew from the one that is loaded.
    files = [folder / name for folder in folders for name in ("model.json", calibration.FILE_NAME)]
    times = tuple(file.stat().st_mtime_ns if file.exists() else 0 for file in files)
    return _load_scorer(tuple(folders), times, **loading).score_pair(prompt, v1, v2, **options)


@lru_cache(maxsize=2)
def _load_scorer(folders: tuple[Path, ...], times: tuple[int, ...], **options: Any) -> Scorer:
    return Scorer.from_pretrained(*folders, **options)


def load_calibration(folders: Iterable[str | Path]) -> Calibration:
    """The calibrations of model folders as one, without their multipliers: `Scorer.multiplier` is the one that fits."""
    return _join_calibrations(_read_calibrations(folders))


def _read_calibrations(folders: Iterable[str | Path]) -> list[Calibration]:
    return [calibration.read_calibration(resolve_model_folder(folder)) for folder in folders]


def _join_calibrations(found: Iterable[Calibration]) -> Calibration:
    heads: dict[str, HeadCalibration] = {}
    labels: dict[str, LabelCalibration] = {}
    for one in found:
        heads, labels = heads | dict(one.heads), labels | dict(one.labels)
    return Calibration(heads, labels)


def _resolve_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device: {name!r} cannot be used here ({reason}); give 'auto', 'cpu' or 'cuda'") from error
    return device


def _frames_array(video: VideoLike) -> np.ndarray:
    if isinstance(video, torch.Tensor):
        if video.dtype != torch.uint8:  # bfloat16, say, has no NumPy type to be named with
            raise SampleError(f"a video given as a tensor: expected uint8 of shape (T, H, W, 3), got {video.dtype}")
        frames: np.ndarray = video.detach().cpu().numpy()
        return frames
    if isinstance(video, np.ndarray):
        return video
    if isinstance(video, list | tuple) and video and all(isinstance(frame, Image) for frame in video):
        if len({frame.size for frame in video}) > 1:
            raise SampleError("a video given as PIL images: its frames have different sizes; resize them to one")
        return np.stack([np.asarray(frame.convert("RGB")) for frame in video])
    raise SampleError(
        f"a video must be a path, bytes, a Video, a uint8 array or tensor (T, H, W, 3) or a list of PIL images, "
        f"got {type(video).__name__}"
    )
