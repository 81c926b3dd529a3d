"""Accuracy, calibration and scores of the dimensions that comparisons speak of."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from safe_rlhf_video.pages.report.plots import (
    Bar,
    Sample,
    draw_bars,
    draw_distributions,
    draw_margins,
    draw_reliability,
    draw_scatter,
)
from safe_rlhf_video.pages.report.sources import Evaluated, Judged
from safe_rlhf_video.pages.report.wording import capitalise, count, grid, missing

_CONTROLS = {
    "generator_only": "generator alone",
    "prompt_only": "prompt alone",
    "is_safe_only": "is_safe alone",
    "random_backbone": "random backbone",
    "shuffled_prompt": "other prompts",
    "reversed_frames": "reversed frames",
    "single_frame": "single frame",
}


def show_accuracy(evaluated: Evaluated) -> str:
    """The section of accuracies and controls; empty without a dimension and a cost."""
    result = evaluated.result
    controls, expected = result["controls"], result["controls_expected"]
    drawn = []
    for judged in evaluated.judged:
        own, title = judged.figures, capitalise(judged.dimension)
        if own["accuracy"] is None:
            drawn.append(missing(title, own["reason"]))
            continue
        bars = [Bar("this model", own["accuracy"], 0, own["interval"])]
        if own["ceiling"] is not None:
            bars.append(Bar("ceiling", own["ceiling"], 2))
        bars += [
            Bar(_CONTROLS.get(name, name), one[judged.dimension], 7, None, expected[name].get(judged.dimension))
            for name, one in controls.items()
            if one.get(judged.dimension) is not None
        ]
        note = f"n = {count(own['num_comparisons'], 'comparison')} of {count(own['num_prompts'], 'prompt')}"
        drawn.append(draw_bars(title, bars, "accuracy: share of comparisons", "who decides", note))
    if "cost" in evaluated.heads:
        drawn.append(_draw_sign(evaluated))
    if not drawn:
        return ""
    lead = (
        "<p>How often the higher score is that of the one which people prefer. The <b>ceiling</b> is what the hidden "
        "order of a synthetic world reaches on the same noisy labels. The grey bars are <b>controls</b>, which show "
        "what can be had without looking, or with a look at the wrong thing; see docs/evaluation.md.</p>"
    )
    return lead + grid(drawn)


def _draw_sign(evaluated: Evaluated) -> str:
    sign, title = evaluated.result["cost_sign"], f"Sign of the cost: safe or unsafe {evaluated.unit}s"
    if sign is None:
        return missing(title, f"no {evaluated.unit} is labelled safe or unsafe")
    if sign["balanced_accuracy"] is None:
        return missing(title, sign["reason"])
    bars = [Bar("this model", sign["balanced_accuracy"], 0)]
    bars += [
        Bar(_CONTROLS.get(name, name), one["cost_sign"], 7)
        for name, one in evaluated.result["controls"].items()
        if one.get("cost_sign") is not None
    ]
    note = (
        f"n = {sign['num_safe']:,} {evaluated.unit}s labelled safe and {sign['num_unsafe']:,} labelled unsafe; of all, "
        f"{100 * sign['accuracy']:.1f}% have the right sign"
    )
    return draw_bars(title, bars, f"balanced accuracy: share of {evaluated.unit}s", "who decides", note)


def show_calibration(evaluated: Evaluated) -> str:
    """The section of reliability diagrams; empty without a dimension."""
    drawn = []
    for judged in evaluated.judged:
        figures = judged.figures["calibration"]
        title = capitalise(judged.dimension)
        if figures["ece"] is None:
            drawn.append(missing(title, figures["reason"]))
            continue
        title += f": ECE {figures['ece']:.3f}"
        how = f"temperature {figures['temperature']:.3f}" if figures["is_calibrated"] else "not calibrated"
        note = (
            f"n = {figures['num_comparisons']:,} comparisons in {len(figures['bins'])} bins of equal mass; {how}; "
            f"Brier score {figures['brier']:.3f}, log loss {figures['log_loss']:.3f} nats"
        )
        if figures["mean_absolute_error"] is not None:
            note += f"; mean |P - hidden probability| {figures['mean_absolute_error']:.3f}"
        drawn.append(draw_reliability(title, figures["bins"], note))
    if not drawn:
        return ""
    lead = (
        "<p>A probability is worth believing where its dots lie on the line: of the comparisons that it gives 80%, "
        "four in five go that way. The ECE is the mean distance from the line; chance alone keeps it above 0.</p>"
    )
    return lead + grid(drawn)


def show_scores(evaluated: Evaluated) -> str:
    """The section of distributions, margins and reward against cost."""
    drawn = [*_draw_distributions(evaluated), *map(_draw_margin, evaluated.judged)]
    if {"reward", "cost"} <= set(evaluated.heads):
        reward, cost = (np.array([row[head] for row in evaluated.scores.values()]) for head in ("reward", "cost"))
        safety = np.array([evaluated.safety[name] for name in evaluated.scores])
        drawn.append(draw_scatter("Reward against cost", reward, cost, safety, evaluated.unit))
    if not drawn:
        return ""
    lead = (
        f"<p>How far a score tells the {evaluated.unit}s apart that people tell apart. Scores of different prompts "
        "have no common zero, but for the cost's: it is the boundary of what is safe.</p>"
    )
    return lead + grid(drawn)


def _draw_distributions(evaluated: Evaluated) -> Iterator[str]:
    for judged in evaluated.judged:
        pairs, sign = judged.labelled.pairs, judged.labelled.sign
        sides = np.array([[evaluated.scores[video.name][judged.head] for video in (pair.video_0, pair.video_1)]
                          for pair in pairs])  # fmt: skip
        chosen, rejected = np.where(sign > 0, sides.T, sides.T[::-1])
        what = "safer" if judged.head == "cost" else "preferred"
        samples = [Sample(f"{what} in its pair", chosen, 0), Sample("the other one", rejected, 1)]
        note = f"; a {evaluated.unit} of several comparisons counts in each"
        yield draw_distributions(
            f"{capitalise(judged.head)}, by choice", samples, _score_title(judged.head), evaluated.unit, note=note
        )
    if "cost" not in evaluated.heads:
        return
    costs = np.array([row["cost"] for row in evaluated.scores.values()])
    safety = np.array([evaluated.safety[name] for name in evaluated.scores])
    title = "Cost, by safety"
    if np.any(safety):
        samples = [Sample("labelled safe", costs[safety > 0], 5), Sample("labelled unsafe", costs[safety < 0], 4)]
        marks = {0.0: "0: the boundary"}
        yield draw_distributions(title, samples, _score_title("cost"), evaluated.unit, marks)
    else:
        yield missing(title, f"no {evaluated.unit} is labelled safe or unsafe")


def _score_title(head: str) -> str:
    what = "the more harmful" if head == "cost" else "the better"
    return f"{head.replace('_', ' ')} (the higher, {what})"


def _draw_margin(judged: Judged) -> str:
    margin = judged.margin * judged.labelled.sign
    note = f"n = {count(len(margin), 'comparison')}"
    if judged.figures["mean_margin"] is not None:
        note += f", {100 * np.mean(margin > 0):.1f}% of them right; mean {judged.figures['mean_margin']:.3f}"
    order = "other one's minus safer one's" if judged.head == "cost" else "preferred minus other"
    title = f"Margin, {judged.dimension.replace('_', ' ')}"
    return draw_margins(title, margin, f"{judged.head.replace('_', ' ')}, {order}", note)
