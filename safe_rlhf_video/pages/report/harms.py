"""Harm labels in a report: flags, curves, and where the cost's sign says something else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from safe_rlhf_video.heads import HEAD_OF_LABEL, HEADS, ORDINAL_HEADS
from safe_rlhf_video.kinds.targets import classes_of, label_columns
from safe_rlhf_video.pages.document import table
from safe_rlhf_video.pages.report.plots import draw_precision_recall
from safe_rlhf_video.pages.report.sources import Evaluated
from safe_rlhf_video.pages.report.wording import count, grid, missing, remark, with_interval


def show_harms(evaluated: Evaluated) -> str:
    """The section of the harm labels; empty without heads for them."""
    moderation = evaluated.result["moderation"]
    if not moderation:
        return ""
    rows, drawn = [], []
    for label, figures in sorted(moderation["labels"].items(), key=lambda one: _place(one[0])):
        name = HEADS[HEAD_OF_LABEL[label]].title
        rows.append(_harm_row(name, figures))
        drawn.append(_draw_harm(evaluated, label, name, figures))
    header = ["", "with / without", "AUROC", "AP", "precision", "recall", "false positives", "target"]
    macro = moderation["macro"]
    means = [
        f"{words} {macro[key]:.3f} of {count(macro[f'num_labels_{key}'], 'label')}"
        for key, words in (("auroc", "AUROC"), ("average_precision", "average precision"), ("f1", "F1"))
        if macro[key] is not None
    ]
    bare = sum(not one["calibrated"] for one in moderation["labels"].values())
    notes = [f"Means over labels, any harm apart: {', '.join(means)}."] if means else []
    if bare:
        notes.append(f"Not calibrated: {count(bare, 'label')}; without a threshold of its own, one half flags.")
    return (
        f"<p>Flags of each label against people's labels of the {evaluated.unit}s. A rare label is told badly by its "
        "AUROC alone: see how many of the flags are right. AP is average precision, FPR the false-positive rate.</p>"
        + table(header, rows) + remark(*notes) + "".join(_show_levels(evaluated, head) for head in ORDINAL_HEADS)
        + _show_disagreement(evaluated) + grid(drawn)
    )  # fmt: skip


def _place(label: str) -> tuple[bool, int]:
    """S2 before S10, any harm before all, and categories of texts behind labels of videos."""
    return label.startswith("text_"), 0 if label == "any" else int(HEADS[HEAD_OF_LABEL[label]].code[1:])


def _harm_row(name: str, figures: Mapping[str, Any]) -> tuple[str | None, ...]:
    signs = {"recall": "recall ≥", "false_positive_rate": "FPR ≤"}
    target = "; ".join(f"{signs[kind]} {100 * value:g}%" for kind, value in (figures["target"] or {}).items())
    return (
        name,
        f"{figures['num_positive']:,} / {figures['num_negative']:,}",
        *(None if figures[key] is None else f"{figures[key]:.3f}" for key in ("auroc", "average_precision")),
        with_interval(figures["precision"], None),
        with_interval(figures["recall"], figures["recall_interval"]),
        with_interval(figures["false_positive_rate"], figures["false_positive_interval"]),
        (target + (", missed" if figures["holds_target"] is False else "")) or None,
    )


def _draw_harm(evaluated: Evaluated, label: str, name: str, figures: Mapping[str, Any]) -> str:
    if figures["auroc"] is None:
        return missing(name, figures["reason"])
    head = HEAD_OF_LABEL[label]
    column = label_columns(head).start
    signs = np.array([evaluated.harms[clip][column] for clip in evaluated.scores])
    scores = np.array([row[head] for row in evaluated.scores.values()])[signs != 0]
    flags = None if figures["precision"] is None else (figures["recall"], figures["precision"])
    note = (
        f"n = {len(scores):,} labelled {evaluated.unit}s, {figures['num_positive']:,} with the label; average "
        f"precision {figures['average_precision']:.3f}, AUROC {figures['auroc']:.3f}"
    )
    return draw_precision_recall(name, scores, signs[signs != 0] > 0, flags, note, evaluated.unit)


def _show_levels(evaluated: Evaluated, head: str) -> str:
    figures = evaluated.result["moderation"].get(head)
    if not figures:
        return ""
    levels = classes_of(head)
    rows = [(level, *(f"{num:,}" for num in row)) for level, row in zip(levels, figures["confusion"], strict=True)]
    told = figures["reason"]
    if told is None:
        told = (
            f"The likeliest level is the labelled one for {with_interval(figures['accuracy'], figures['interval'])} "
            f"of {figures['num']:,} {evaluated.unit}s"
            + ("." if figures["kappa"] is None else f"; quadratic-weighted kappa {figures['kappa']:.3f}.")
        )
    title = head.capitalize().replace("_", " ")
    return f"<h3>{title}</h3>" + table(["labelled, by likeliest level", *levels], rows) + remark(told)


def _show_disagreement(evaluated: Evaluated) -> str:
    cells = evaluated.result["moderation"].get("cost_sign_against_any")
    if not cells:
        return ""
    names = {
        "both": "both",
        "cost_only": "the cost's sign alone",
        "any_only": "the flag of any harm alone",
        "neither": "neither",
    }
    rows = [
        (words, *(f"{cells[name][key]:,}" for key in ("num", "num_unsafe", "num_safe")))
        for name, words in names.items()
    ]
    header = ["called harmful by", f"{evaluated.unit}s", "labelled unsafe", "labelled safe"]
    return "<h3>The cost's sign against the flag of any harm</h3>" + table(header, rows, 0)
