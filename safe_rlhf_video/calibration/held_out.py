"""Selects the comparisons and clips that a model's training never read: what it may be calibrated on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from safe_rlhf_video.data.preferences import is_for_calibration, names_of_generators, normalise_prompt, videos_of
from safe_rlhf_video.data.prompt_hashes import PromptHashes
from safe_rlhf_video.data.records import PairSample, VideoSample
from safe_rlhf_video.errors import SampleError
from safe_rlhf_video.models.record import TrainingFacts

Sample = PairSample | VideoSample


def held_out(
    samples: Sequence[Sample],
    data: str,
    folder: str | Path,
    training: TrainingFacts,
    train_prompts: Sequence[str] | None = None,
    trained: PromptHashes | None = None,
) -> list[Sample]:
    """The comparisons or clips whose prompts a model's training did not read, neither to learn nor to choose.

    Records with a clip of a generator that was left out of training are not selected.

    Args:
        samples, data: the records of a file, and its name.
        folder, training: the model folder and its training facts. With a `calibration_fraction` above 0 these say which
            prompts were held out, and exactly those are taken.
        train_prompts: for a model that was trained without one, the texts of all prompts that its training was given;
            `samples` must share none with them.
        trained: hashes of the prompts that its training read, where the folder has them; none may be selected.

    Raises:
        SampleError: nothing says what was trained on, a prompt was trained on, or nothing is left.
    """
    if unseen := training.leave_out_generators:
        names = names_of_generators(samples, unseen)
        samples = [sample for sample in samples if not any(video.name in names for video in videos_of(sample))]
        if not samples:
            raise SampleError(
                f"{data}: every record has a clip of {', '.join(unseen)}, which the training of {folder} left out; "
                "give clips of other generators"
            )
    fraction = training.calibration_fraction
    if fraction > 0:
        kept = [sample for sample in samples if is_for_calibration(sample.prompt_text, fraction, training.seed)]
        if not kept:
            raise SampleError(
                f"{data}: has none of the prompts that the training of {folder} held out (data.calibration_fraction "
                f"{fraction:g}); give the file that it was trained on"
            )
        samples = kept
    elif train_prompts is None and trained is None:
        raise SampleError(
            f"{folder}: was trained without data.calibration_fraction, so nothing says that it has not seen the "
            f"prompts of {data}; name all that it was trained on with --train_data"
        )
    seen = set(map(normalise_prompt, train_prompts or ())) if not fraction else set()
    if trained is not None:
        seen |= trained.among(sample.prompt_text for sample in samples)
    shared = {text: None for sample in samples if (text := normalise_prompt(sample.prompt_text)) in seen}
    if shared:
        raise SampleError(
            f"{data}: {len(shared)} of its prompts were trained on, the first is {next(iter(shared))[:60]!r}; give "
            "other prompts"
        )
    return list(samples)


def describe_dropped(
    samples: Sequence[Sample], kept: Sequence[Sample], folder: str | Path, training: TrainingFacts
) -> str:
    """Says how many prompts `held_out` did not select, and why; empty where it selected all."""
    num, num_kept = (len({normalise_prompt(sample.prompt_text) for sample in some}) for some in (samples, kept))
    if num == num_kept:
        return ""
    reasons = []
    if training.calibration_fraction > 0:
        reasons.append(
            "a hash of its text says for each prompt whether training held it out (data.calibration_fraction "
            f"{training.calibration_fraction:g}, seed {training.seed}), and of the others it may have read any"
        )
    if training.leave_out_generators:
        reasons.append(f"training left out the clips of {', '.join(training.leave_out_generators)}")
    return f"{folder}: {num - num_kept} of {num} prompts are not used: {'; '.join(reasons)}"
