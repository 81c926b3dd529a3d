"""The top of a report: what was evaluated, what to know of it, and every figure in a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from safe_rlhf_video.data.records import ALL_DIMENSIONS, DIMENSIONS
from safe_rlhf_video.errors import VideoDecodeError
from safe_rlhf_video.evaluation.dimension_figures import HEAD_OF_DIMENSION
from safe_rlhf_video.pages.document import escape, table
from safe_rlhf_video.pages.report.sources import Evaluated
from safe_rlhf_video.pages.report.wording import capitalise, count, remark, together, with_interval


def show_head(evaluated: Evaluated, pictures: Mapping[str, str | VideoDecodeError]) -> str:
    """What stands above the sections; `pictures` as of `page.make_report`."""
    result, unit = evaluated.result, evaluated.unit
    pairs, videos = evaluated.clips.pairs, evaluated.clips.videos
    num_prompts = len({sample.prompt_id for samples in (pairs, videos) for sample in samples})
    counts = [count(len(pairs), "comparison")] if pairs else []
    counts += [count(len(evaluated.scores), unit), count(num_prompts, "prompt")]
    models = ", ".join(f"{folder} (weights {weights[:8]})" for folder, weights in result["models"].items())
    about = (
        f'<p class="dim">{escape(models)} on {escape(result["data"])}: {", ".join(counts)}. Intervals are of 95%, by '
        f"resampled prompts (seed {result['bootstrap_seed']}).</p>"
    )
    facts = "".join(f'<li class="{"look" if is_look else ""}">{escape(text)}</li>'
                    for is_look, text in _facts(evaluated, pictures))  # fmt: skip
    return about + f'<ul class="facts">{facts}</ul>' + _show_figures(evaluated)


def _facts(evaluated: Evaluated, pictures: Mapping[str, str | VideoDecodeError]) -> Iterator[tuple[bool, str]]:
    """What a reader should know before the figures: whether it is a reason to look, and the sentence."""
    bare = [judged.head for judged in evaluated.judged if not judged.figures["calibration"]["is_calibrated"]]
    if bare:
        text = (
            f"Probabilities of {', '.join(bare)} are not calibrated: they are the plain sigmoid of the difference of "
            "two scores. scripts/calibrate.py fits them to labels that training never saw."
        )
        yield True, text
    elif evaluated.judged:
        yield False, "Probabilities are calibrated: their temperatures were fitted to labels that training never saw."
    shared = evaluated.result["num_prompts_also_in_training"]
    if shared:
        yield True, f"{count(shared, 'prompt')} of the test are in the training data too: figures may flatter."
    elif shared is None:
        yield False, "The training comparisons were not given, so nobody checked that no test prompt is among them."
    else:
        yield False, "No test prompt is in the training data."
    for dimension in ALL_DIMENSIONS:
        head = HEAD_OF_DIMENSION[dimension]
        if head in evaluated.heads and not evaluated.result[dimension]:
            yield True, f"{capitalise(dimension)} has no figure: no comparison has a label that is no tie."
    for dimension in DIMENSIONS:
        if HEAD_OF_DIMENSION[dimension] not in evaluated.heads:
            yield False, f"{capitalise(dimension)} has no figure: the models have no {HEAD_OF_DIMENSION[dimension]}."
    unread = sum(isinstance(picture, VideoDecodeError) for picture in pictures.values())
    if unread:
        text = f"{unread:,} of {count(len(pictures), 'clip')} to be shown cannot be read; there the reason stands."
        yield True, text


def _show_figures(evaluated: Evaluated) -> str:
    if not evaluated.judged:
        return ""
    rows, reasons = [], []
    for judged in evaluated.judged:
        figures, name = judged.figures, judged.dimension.replace("_", " ")
        probability, ties = figures["calibration"], figures["tie_aware"]
        rows.append(
            (
                capitalise(judged.dimension),
                f"{figures['num_comparisons']:,} ({figures['num_prompts']:,})",
                with_interval(figures["accuracy"], figures["interval"]),
                with_interval(figures["ceiling"], None),
                with_interval(figures["fraction_of_ceiling"], figures["fraction_of_ceiling_interval"]),
                with_interval(ties["accuracy"], ties["interval"]),
                None if probability["ece"] is None else f"{probability['ece']:.3f}",
                f"{probability['temperature']:.3f}" if probability["is_calibrated"] else "not calibrated",
            )
        )
        if figures["accuracy"] is None:
            reasons.append(f"{name}, accuracy: {figures['reason']}")
        elif figures["interval"] is None:
            reasons.append(f"{name}, interval: one prompt alone has none")
        if ties["accuracy"] is None:
            reasons.append(f"{name}, accuracy with ties: {ties['reason']}")
        if probability["ece"] is None:
            reasons.append(f"{name}, ECE: {probability['reason']}")
        if figures["ceiling"] is None and figures["accuracy"] is not None:
            reasons.append(f"{name}, ceiling: the hidden truth is known of synthetic worlds alone")
    header = ["", "comparisons (prompts)", "accuracy", "ceiling", "accuracy / ceiling", "with ties", "ECE",
              "temperature"]  # fmt: skip
    # A column that nobody has a figure for is left out; the reason stands below.
    kept = [column for column in range(len(header)) if any(row[column] is not None for row in rows)]
    shown = table([header[column] for column in kept], [[row[column] for column in kept] for row in rows])
    return shown + remark(*together(reasons))
