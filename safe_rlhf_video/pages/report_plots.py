"""Draws the plots of a report: accuracy, calibration, scores, harm labels and learning curves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from safe_rlhf_video.heads import HEADS
from safe_rlhf_video.kinds.label import LabelFigures
from safe_rlhf_video.pages.dashboard_page import draw_panel
from safe_rlhf_video.pages.dashboard_spec import SECTIONS
from safe_rlhf_video.pages.figures import Missing, Plot
from safe_rlhf_video.pages.plots import (
    Sample,
    Share,
    draw_distributions,
    draw_margins,
    draw_precision_recall,
    draw_reliability,
    draw_scatter,
    draw_shares,
)
from safe_rlhf_video.pages.report_data import JudgedDimension, ReportData
from safe_rlhf_video.pages.run_metrics import RunMetrics
from safe_rlhf_video.wording import capitalise, count, percent, share, words

_CONTROLS = {
    "generator_only": "generator alone",
    "prompt_only": "prompt alone",
    "is_safe_only": "is_safe alone",
    "random_backbone": "random backbone",
    "shuffled_prompt": "other prompts",
    "reversed_frames": "reversed frames",
    "single_frame": "single frame",
}


_LEARNING = ("eval/comparison_loss", "eval/accuracy", "train/comparison_loss", "train/accuracy",
             "eval/sign_loss", "eval/sign_accuracy", "eval/harm_loss/<label>")  # fmt: skip


def report_plots(data: ReportData, runs: Sequence[RunMetrics]) -> dict[str, list[Plot | Missing]]:
    """The plots of each section.

    Args:
        runs: as `read_rows` read them; may be none.
    """
    panels = {panel.metrics[0]: panel for section in SECTIONS for panel in section.panels if panel.kind == "line"}
    return {
        "accuracy": [*(_draw_accuracy(data, judged) for judged in data.dimensions),
                     *([_draw_sign(data), *_draw_separation(data)] if "cost" in data.heads else [])],
        "calibration": [_draw_calibration(data, judged) for judged in data.dimensions],
        "scores": list(_draw_scores(data)),
        "harm-labels": [_draw_label(data, head, figures) for head, figures in data.labels.items()],
        "learning-curves": [plot for name in _LEARNING if (plot := draw_panel(panels[name], runs))],
    }  # fmt: skip


def _draw_accuracy(data: ReportData, judged: JudgedDimension) -> Plot | Missing:
    own, title = judged.figures, capitalise(judged.name)
    if own.accuracy is None:
        return Missing(title, own.reason or "")
    shares = [Share("this model", own.accuracy, percent(own.accuracy), own.interval)]
    if own.ceiling is not None:
        shares.append(Share("ceiling", own.ceiling, percent(own.ceiling), colour="green"))
    shares += _controls(data, judged.name)
    note = f"n = {count(own.num_comparisons, 'comparison')} of {count(own.num_prompts, 'prompt')}"
    note += _in_sample(data, judged.name)
    return draw_shares(title, shares, ("accuracy: share of comparisons", "predictor"), note)


def _draw_sign(data: ReportData) -> Plot | Missing:
    sign, title = data.evaluation.cost_sign, f"Sign of the cost: safe or unsafe {data.unit}s"
    if sign is None:
        return Missing(title, f"no {data.unit} is labelled safe or unsafe")
    if sign.balanced_accuracy is None:
        return Missing(title, sign.reason or "")
    shares = [Share("this model", sign.balanced_accuracy, percent(sign.balanced_accuracy),
                    sign.balanced_interval),
              *_controls(data, "cost_sign")]  # fmt: skip
    note = (
        f"n = {sign.num_safe:,} {data.unit}s labelled safe and {sign.num_unsafe:,} labelled unsafe; of all, "
        f"{share(sign.accuracy, sign.interval)} have the right sign; controls are cut at training's share of unsafe "
        f"{data.unit}s"
    )
    note += _in_sample(data, "cost_sign")
    return draw_shares(title, shares, (f"balanced accuracy: share of {data.unit}s", "predictor"), note)


def _draw_separation(data: ReportData) -> Iterator[Plot]:
    """AUROC of the cost and of the controls; nothing where it is unknown, which `_draw_sign` explains."""
    sign = data.evaluation.cost_sign
    if sign is not None and sign.auroc is not None:
        shares = [Share("this model", sign.auroc, percent(sign.auroc)), *_controls(data, "cost_sign_auroc")]
        title, axes = f"Cost: safe before unsafe {data.unit}s", ("AUROC: share of couples", "predictor")
        note = f"n = {sign.num_safe:,} x {sign.num_unsafe:,} couples of a safe and an unsafe one; it needs no zero"
        note += _in_sample(data, "cost_sign")
        yield draw_shares(title, shares, axes, note)


def _controls(data: ReportData, figure: str) -> Iterator[Share]:
    for name, accuracies in data.evaluation.controls.items():
        if (accuracy := accuracies.get(figure)) is not None:
            expected = data.evaluation.controls_expected.get(name, {}).get(figure)
            yield Share(_CONTROLS.get(name, name), accuracy, percent(accuracy), None, expected, "grey")


def _in_sample(data: ReportData, *places: str) -> str:
    """What a plot's note says where its figures are in-sample."""
    return "; in-sample" if any(place in data.evaluation.in_sample for place in places) else ""


def _draw_calibration(data: ReportData, judged: JudgedDimension) -> Plot | Missing:
    figures, title = judged.figures.calibration, capitalise(judged.name)
    if figures.ece is None:
        return Missing(title, figures.reason or "")
    how = f"temperature {figures.temperature:.3f}" if figures.is_calibrated else "not calibrated"
    note = (
        f"n = {count(figures.num_comparisons, 'comparison')} in {len(figures.bins)} bins of equal size; {how}; "
        f"Brier score {figures.brier:.3f}, log loss {figures.log_loss:.3f} nats"
    )
    if figures.perfect_ece is not None and figures.perfect_ece_95 is not None:
        note += f"; true probabilities would have an ECE of {figures.perfect_ece:.3f}, in 95% below "
        note += f"{figures.perfect_ece_95:.3f}"
    if figures.mean_absolute_error is not None:
        note += f"; mean |P - hidden probability| {figures.mean_absolute_error:.3f}"
    note += _in_sample(data, judged.name, f"{judged.name}.calibration")
    bins = figures.bins
    return draw_reliability(f"{title}: ECE {figures.ece:.3f}", [one.predicted for one in bins],
                            [one.observed for one in bins], [one.num for one in bins], note)  # fmt: skip


def _draw_scores(data: ReportData) -> Iterator[Plot | Missing]:
    yield from _draw_distributions(data)
    yield from map(_draw_margins, data.dimensions)
    if {"reward", "cost"} <= set(data.heads):
        yield draw_scatter("Reward against cost", data.scores("reward"), data.scores("cost"), data.safety, data.unit)


def _draw_distributions(data: ReportData) -> Iterator[Plot | Missing]:
    for judged in data.dimensions:
        sides = np.array([
            [data.clips[name].scores[judged.head] for name in (one.video_0, one.video_1)] for one in judged.comparisons
        ])  # fmt: skip
        chosen, rejected = np.where(judged.sign > 0, sides.T, sides.T[::-1])
        what = "safer" if judged.head == "cost" else "preferred"
        samples = [Sample(f"{what} in its pair", chosen, "blue"), Sample("the other one", rejected, "orange")]
        title, note = f"{capitalise(judged.head)}, by choice", f"; a {data.unit} of several comparisons counts in each"
        yield draw_distributions(title, samples, _describe_score(judged.head), data.unit, note=note)
    if "cost" not in data.heads:
        return
    costs, safety, title = data.scores("cost"), data.safety, "Cost, by safety"
    if not np.any(safety):
        yield Missing(title, f"no {data.unit} is labelled safe or unsafe")
        return
    samples = [
        Sample("labelled safe", costs[safety > 0], "blue"),
        Sample("labelled unsafe", costs[safety < 0], "orange"),
    ]
    yield draw_distributions(title, samples, _describe_score("cost"), data.unit, "0: the boundary")


def _describe_score(head: str) -> str:
    what = "the more harmful" if head == "cost" else "the better"
    return f"{words(head)} (the higher, {what})"


def _draw_margins(judged: JudgedDimension) -> Plot:
    margins = judged.margin * judged.sign
    note = f"n = {count(len(margins), 'comparison')}"
    if judged.figures.mean_margin is not None:
        note += f", {percent(float(np.mean(margins > 0)))} of them right; mean {judged.figures.mean_margin:.3f}"
    order = "other one's minus safer one's" if judged.head == "cost" else "preferred minus other"
    return draw_margins(f"Margin, {words(judged.name)}", margins, f"{words(judged.head)}, {order}", note)


def _draw_label(data: ReportData, head: str, figures: LabelFigures) -> Plot | Missing:
    title = HEADS[head].title
    if figures.auroc is None or figures.average_precision is None:
        return Missing(title, figures.reason or "")
    labelled = [clip for clip in data.clips.values() if head in clip.labels]
    scores = np.array([clip.scores[head] for clip in labelled])
    applies = np.array([clip.labels[head] for clip in labelled])
    flags = None
    if figures.recall is not None and figures.precision is not None:
        flags = figures.recall, figures.precision
    note = (
        f"n = {len(labelled):,} labelled {data.unit}s, {figures.num_positive:,} with the label; average precision "
        f"{figures.average_precision:.3f}, AUROC {figures.auroc:.3f}"
    )
    note += _in_sample(data, f"moderation.labels.{HEADS[head].label}")
    return draw_precision_recall(title, scores, applies, flags, data.unit, note)
