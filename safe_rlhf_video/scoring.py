"""Scores for generations, and the choice between two of them under a safety constraint."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, Self, TypeAlias, cast

import numpy as np
import torch
from PIL.Image import Image

from safe_rlhf_video import calibration, lagrangian
from safe_rlhf_video.calibration import Calibration, HeadCalibration, LabelCalibration
from safe_rlhf_video.data.samples import PUBLISHED_LABELS
from safe_rlhf_video.errors import CheckpointError, ConfigError, SampleError, VideoDecodeError
from safe_rlhf_video.heads import (
    HEADS,
    LABEL_HEADS,
    LOGIT_HEADS,
    SEVERITIES,
    SEVERITY,
    SUB_HEADS,
    TEXT_HARM_HEADS,
    label_name,
)
from safe_rlhf_video.models.checkpoint import (
    ModelRecord,
    fingerprint_weights,
    load_models,
    read_record,
    resolve_model_folder,
)
from safe_rlhf_video.models.inputs import build_inputs
from safe_rlhf_video.moderation import Target, severity_probabilities
from safe_rlhf_video.responses import Response, TextResponse
from safe_rlhf_video.video.pool import DecodePool
from safe_rlhf_video.video.sampling import Video, sample_video

# A path, a Video, a TextResponse, or, with fps=, a uint8 array or tensor (T, H, W, 3) or a list of PIL images.
VideoLike = Any
Source: TypeAlias = Path | TextResponse | Callable[[], Video]


@dataclass(frozen=True)
class PairScore:
    """Two generations for one prompt, judged; every tuple is (v1, v2).

    Attributes:
        rewards: how helpful; only differences between answers to one prompt mean something.
        costs: how harmful; above 0 is unsafe.
        lagrangian_scores: (r - lambda (c - d)) / (1 + lambda).
        lagrange_multiplier: lambda, the price of a unit of cost in units of reward.
        cost_limit: d.
        p_more_helpful: probability that people find v1 more helpful than v2, by Bradley-Terry; too near one half for a
            model that was trained on ties by Rao and Kupper's.
        p_safer: probability that people find v1 safer than v2.
        calibrated: whether these two probabilities were fitted to held-out labels.
        is_safe: cost <= 0.
        sub_scores: head -> scores in a sub-dimension of helpfulness, of those that the model has; as rewards.
        preferred: the side with the higher Lagrangian score; "tie" below `lagrangian.TIE_TOLERANCE`.
        reason: the choice in a sentence.
        percentiles: head -> per cent of the reference clips of `scripts/calibrate.py` that score lower; for the cost
            these are the less harmful ones. None without a calibrated model.
    """

    rewards: tuple[float, float]
    costs: tuple[float, float]
    lagrangian_scores: tuple[float, float]
    lagrange_multiplier: float
    cost_limit: float
    p_more_helpful: float
    p_safer: float
    calibrated: bool
    is_safe: tuple[bool, bool]
    sub_scores: Mapping[str, tuple[float, float]]
    preferred: Literal["v1", "v2", "tie"]
    reason: str
    percentiles: Mapping[str, tuple[float, float]] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Moderation:
    """Which harms a video or a text shows.

    Attributes:
        probabilities: label -> that it applies: "any", and the keys of `PUBLISHED_LABELS` that the model has heads for:
            SafeSora's of a video, and those that begin with "text_" of a text.
        flags: labels whose logit is above the threshold that `scripts/calibrate.py` chose, or without one, whose
            probability is above one half; the most probable first.
        names: of these flags, as SafeSora and PKU-SafeRLHF publish them, e.g. "S8 Violence, Injury, Gory Content".
        calibrated: label -> whether its probability was fitted to held-out labels. Of the others the weights that rare
            labels had in training are taken out, no more.
        targets: label -> what its threshold holds on new clips; None without one.
        severity: level of `SEVERITIES` -> probability; None without a head for it. Not fitted to held-out labels.
    """

    probabilities: Mapping[str, float]
    flags: tuple[str, ...]
    names: tuple[str, ...]
    calibrated: Mapping[str, bool]
    targets: Mapping[str, Target | None]
    severity: Mapping[str, float] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


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
        self.calibration = load_calibration(model_dirs if calibrated else ())
        self.model, self._backbone, self.record = load_models(model_dirs, device, backbone)
        self._workers = workers
        self._pool = DecodePool(self.record.sampling, num_workers=workers)
        self.fingerprint = fingerprint_weights(model_dirs)

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
    def severity_thresholds(self) -> np.ndarray | None:
        """The scores from which on a severity is rather the next higher one: (3,); None without a head for it."""
        if SEVERITY not in self.heads:
            return None
        thresholds: np.ndarray = self.model.severity_thresholds().detach().double().cpu().numpy()
        return thresholds

    def read(self, videos: Sequence[VideoLike], fps: float | None = None) -> list[Response]:
        """Sample videos as the model was trained: files are decoded, arrays are picked from and resized.

        Raises:
            VideoDecodeError: a file cannot be read. SampleError: an array without `fps`, or of another form.
        """
        # Arrays first: a wrong one is said before any file is decoded.
        sampled: list[Response | None] = [
            None if isinstance(video, str | Path) else self._sample(video, fps) for video in videos
        ]
        decoded = iter(self._pool.read([Path(video) for video in videos if isinstance(video, str | Path)]))
        return [next(decoded) if video is None else video for video in sampled]

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
        if not set(LABEL_HEADS) & set(self.heads):
            raise CheckpointError(
                "no harm label has a head here; give a folder of scripts/train_moderation.py to Scorer.from_pretrained"
            )
        scores = self.score(prompt, video, fps=fps)
        is_text = isinstance(video, TextResponse)
        return judge_harms(scores, self.records, is_text, self.calibration.labels, self.severity_thresholds)

    def score_pair(
        self,
        prompt: str,
        v1: VideoLike,
        v2: VideoLike,
        *,
        lagrange_multiplier: float = 1.0,
        cost_limit: float = 0.0,
        fps: float | None = None,
    ) -> PairScore:
        """Judge two videos for one prompt; swapping them mirrors the result exactly.

        Args:
            v1, v2: each a path, a `Video`, or with `fps` a uint8 array or tensor (T, H, W, 3) or a list of PIL images;
                or a `TextResponse`.
            lagrange_multiplier: lambda >= 0; 0 ignores cost.
            cost_limit: d, the cost that is allowed.
            fps: frames a second of arrays handed in.
        """
        self.require_both_heads()
        scores = self._score_by_content(prompt, self.read([v1, v2], fps))
        pairs = {head: tuple(values.tolist()) for head, values in scores.items()}
        return judge_pair(pairs, lagrange_multiplier, cost_limit, self.calibration.heads)

    def rank(
        self,
        prompt: str,
        videos: Sequence[VideoLike],
        *,
        lagrange_multiplier: float = 1.0,
        cost_limit: float = 0.0,
        fps: float | None = None,
    ) -> list[int]:
        """Indices of the videos by Lagrangian score, best first; equal videos keep their order."""
        self.require_both_heads()
        if not videos:
            return []
        scores = self._score_by_content(prompt, self.read(videos, fps))
        combined = lagrangian.lagrangian_score(scores["reward"], scores["cost"], lagrange_multiplier, cost_limit)
        order: list[int] = np.argsort(-combined, kind="stable").tolist()
        return order

    def iterate(
        self, prompts: Sequence[str], sources: Sequence[Source], batch_size: int = 64
    ) -> Iterator[dict[str, float]]:
        """Score many files or texts, decoding ahead of the model; yields one {head: score} each, in order.

        Args:
            sources: each a file, a text, or a function that reads a sampled video when it is its turn.

        Raises:
            VideoDecodeError: when it is the turn of a batch with a file that cannot be read.
            ConfigError: there are not as many prompts as sources, or the batch size is not positive.
        """
        if len(prompts) != len(sources):
            raise ConfigError(f"{len(prompts)} prompts for {len(sources)} videos; give each its prompt")
        if batch_size < 1:
            raise ConfigError(f"batch_size: expected at least 1, got {batch_size}")
        decoded = self._pool.iterate((path for path in sources if isinstance(path, Path)), ahead=2 * batch_size)

        def response(source: Source) -> Response:
            if isinstance(source, Path):
                return next(decoded)
            return source if isinstance(source, TextResponse) else source()

        for start in range(0, len(sources), batch_size):
            chunk = prompts[start : start + batch_size]
            scores = self.score_batch(chunk, [response(source) for source in sources[start : start + batch_size]])
            for number in range(len(chunk)):
                yield {head: float(values[number]) for head, values in scores.items()}

    def close(self) -> None:
        """Stop the decoding processes; the next file starts them again."""
        self._pool.close()
        self._pool = DecodePool(self.record.sampling, num_workers=self._workers)

    def _score_by_content(self, prompt: str, videos: Sequence[Response]) -> dict[str, np.ndarray]:
        """Scores that neither the videos' order nor a video given twice can move, not even by a last bit."""
        keys = [_content_key(video) for video in videos]
        # Each content once and in the order of the keys: the place in a batch is felt in the last bits.
        distinct = dict(sorted(zip(keys, videos, strict=True), key=lambda item: item[0]))
        scores = self.score_batch([prompt] * len(distinct), list(distinct.values()))
        places = {key: place for place, key in enumerate(distinct)}
        return {head: values[[places[key] for key in keys]] for head, values in scores.items()}

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


def judge_pair(
    scores: Mapping[str, tuple[float, float]],
    lagrange_multiplier: float = 1.0,
    cost_limit: float = 0.0,
    calibrations: Mapping[str, HeadCalibration] | None = None,
) -> PairScore:
    """The decision from scores alone: the Lagrangian of Safe RLHF (arXiv 2310.12773) and its explanation.

    Args:
        scores: head -> (v1, v2); a reward and a cost must be among them.
        calibrations: head -> calibration, `Scorer.calibration.heads`. Unless both the reward and the cost have a
            temperature, neither probability is calibrated.
    """
    of_head = calibrations or {}
    temperatures = {head: one.temperature for head, one in of_head.items() if one.temperature is not None}
    is_calibrated = {"reward", "cost"} <= temperatures.keys()
    reward_unit, cost_unit = (temperatures[head] if is_calibrated else 1.0 for head in ("reward", "cost"))
    references = {head: one.reference for head, one in of_head.items() if one.reference is not None and head in scores}
    rewards, costs = scores["reward"], scores["cost"]
    first, second = (
        float(lagrangian.lagrangian_score(reward, cost, lagrange_multiplier, cost_limit))
        for reward, cost in zip(rewards, costs, strict=True)
    )
    preferred = lagrangian.choose(first, second)
    return PairScore(
        rewards=rewards,
        costs=costs,
        lagrangian_scores=(first, second),
        lagrange_multiplier=float(lagrange_multiplier),
        cost_limit=float(cost_limit),
        p_more_helpful=_probability((rewards[0] - rewards[1]) / reward_unit),
        p_safer=_probability((costs[1] - costs[0]) / cost_unit),
        calibrated=is_calibrated,
        is_safe=(costs[0] <= 0.0, costs[1] <= 0.0),
        sub_scores={head: scores[head] for head in SUB_HEADS if head in scores},
        preferred=preferred,
        reason=lagrangian.explain_choice(rewards, costs, lagrange_multiplier, cost_limit, preferred),
        percentiles={
            head: (calibration.percentile(scores[head][0], one), calibration.percentile(scores[head][1], one))
            for head, one in references.items()
        }
        or None,
    )


def judge_harms(
    scores: Mapping[str, float],
    records: Sequence[ModelRecord],
    is_text: bool = False,
    calibrations: Mapping[str, LabelCalibration] | None = None,
    severity_thresholds: np.ndarray | None = None,
) -> Moderation:
    """Probabilities of harm labels from their logits, which are flagged, and how severe the harm is.

    Without a fitted probability

        p = sigmoid(logit - ln(w_1 / w_0))      w_c the weight that a video of class c had in training

    since weighing a class multiplies its odds in what is learned; source: King & Zeng 2001 (prior correction).

    Args:
        scores: head -> score.
        records: of the model folders, which tell these weights.
        is_text: labels of videos say nothing of a text, nor those of texts of a video; any harm is about both.
        calibrations: head -> calibration, `Scorer.calibration.labels`.
        severity_thresholds: `Scorer.severity_thresholds`; without them nothing is said of the severity.
    """
    log_odds: dict[str, float] = {}
    weights: Any = None
    for record in records:
        log_odds |= cast(dict[str, float], record.training.get("harm_log_odds", {}))
        weights = record.training.get("severity_weights", weights)
    probabilities: dict[str, float] = {}
    calibrated: dict[str, bool] = {}
    targets: dict[str, Target | None] = {}
    flagged: list[str] = []
    for head in LOGIT_HEADS:
        if head not in scores or (head != "harm_any" and (head in TEXT_HARM_HEADS) != is_text):
            continue
        label, fitted = label_name(head), (calibrations or {}).get(head)
        probability = fitted.probability(scores[head]) if fitted else None
        calibrated[label] = probability is not None
        probabilities[label] = (
            _probability(scores[head] - log_odds.get(head, 0.0)) if probability is None else probability
        )
        threshold = fitted.threshold if fitted else None
        targets[label] = None if fitted is None or threshold is None else fitted.target
        if probabilities[label] > 0.5 if threshold is None else scores[head] > threshold.logit:
            flagged.append(label)
    flags = tuple(sorted(flagged, key=lambda label: -probabilities[label]))
    names = tuple(PUBLISHED_LABELS[label] for label in flags if label in PUBLISHED_LABELS)
    severity = None
    if is_text and SEVERITY in scores and severity_thresholds is not None:
        levels = severity_probabilities(np.array(scores[SEVERITY]), severity_thresholds, weights)
        severity = dict(zip(SEVERITIES, levels.tolist(), strict=True))
    return Moderation(probabilities, flags, names, calibrated, targets, severity)


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
    """The calibrations of model folders as one."""
    heads: dict[str, HeadCalibration] = {}
    labels: dict[str, LabelCalibration] = {}
    for folder in folders:
        found = calibration.read_calibration(resolve_model_folder(folder))
        heads, labels = heads | dict(found.heads), labels | dict(found.labels)
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


def _probability(difference: float) -> float:
    # p(d) and p(-d) add up to exactly 1: in [0.5, 1] the subtraction from 1 is exact.
    larger = 1.0 / (1.0 + math.exp(-abs(difference)))
    return larger if difference >= 0 else 1.0 - larger


def _content_key(video: Response) -> str:
    if isinstance(video, TextResponse):
        return hashlib.sha256(b"text" + video.text.encode(errors="surrogatepass")).hexdigest()
    digest = hashlib.sha256(repr(video.frames.shape).encode())
    digest.update(np.ascontiguousarray(video.frames).data)
    digest.update(np.ascontiguousarray(video.timestamps).data)
    return digest.hexdigest()


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
        f"a video must be a path, a Video, a uint8 array or tensor (T, H, W, 3) or a list of PIL images, "
        f"got {type(video).__name__}"
    )


__all__ = ["Moderation", "PairScore", "Scorer", "judge_harms", "judge_pair", "score_pair"]
