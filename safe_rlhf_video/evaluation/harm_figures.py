"""How well harm labels are told, each label by itself, and where the cost's sign says something else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from safe_rlhf_video.heads import HEADS, LOGIT_HEADS, ORDINAL_HEADS
from safe_rlhf_video.kinds.targets import classes_of, kind_of, label_columns
from safe_rlhf_video.stats.metrics import (
    MIN_COMPARISONS,
    average_precision,
    mean_interval,
    precision_recall_f1,
    roc_auc,
    weighted_kappa,
)
from safe_rlhf_video.stats.thresholds import Target

if TYPE_CHECKING:
    # Only its annotations; torch is slow to import.
    from safe_rlhf_video.scoring import Moderation

Figures = dict[str, Any]
NUM_EXAMPLES = 20


def judge_labels(
    signs: Mapping[tuple[str, str], np.ndarray],
    logits: Mapping[str, Mapping[str, float]],
    judged: Mapping[str, Moderation],
    seed: int = 0,
) -> Figures:
    """Figures of every harm label that has a head.

    Args:
        signs: (prompt_id, video_id) -> label targets, as `harm_signs`.
        logits: prompt_id/video_id -> head -> score.
        judged: prompt_id/video_id -> what is said of the clip.
        seed: of the bootstrap of prompts.

    Returns:
        `labels`: label -> auroc, average_precision, precision, f1, recall and false_positive_rate (these two with an
        interval, 95%, by prompts), `target` and `holds_target` (None without a threshold, or with fewer than 30 clips
        of the class that it is about), `calibrated`, `prevalence` and counts. A figure that cannot be had is None, with
        the reason. `macro`: means over the labels with 30 clips of either class, any harm apart, and over how many.
        `severity`: None without a head, else accuracy of the likeliest level with interval, quadratic-weighted kappa,
        and `confusion` (4, 4), labelled by likeliest level.
    """
    keys = list(signs)
    names = [f"{prompt_id}/{video_id}" for prompt_id, video_id in keys]
    known = np.stack([signs[key] for key in keys])
    prompts = np.array([prompt_id for prompt_id, _ in keys])
    heads = logits[names[0]].keys()
    labels = {}
    for head in LOGIT_HEADS:
        if head not in heads:
            continue
        column = label_columns(head).start
        label, rows = HEADS[head].label, np.flatnonzero(known[:, column])
        labels[label] = _judge_label(
            np.array([logits[names[row]][head] for row in rows]),
            np.array([label in judged[names[row]].flags for row in rows], dtype=bool),
            known[rows, column] > 0,
            prompts[rows],
            seed,
        )
        one = next((judged[name] for name in names if label in judged[name].probabilities), None)
        target = one.targets[label] if one else None
        labels[label] |= _hold_against(target, labels[label]) | {"calibrated": bool(one and one.calibrated[label])}
    return {
        "labels": labels,
        "macro": _macro({label: one for label, one in labels.items() if label != "any"}),
        **{head: _judge_levels(head, known, [judged[name] for name in names], prompts, seed) for head in ORDINAL_HEADS},
    }


def compare_with_cost(
    safety: Mapping[tuple[str, str], int],
    costs: Mapping[str, float],
    judged: Mapping[str, Moderation],
) -> Figures:
    """Where the cost's sign and the flag of any harm agree: counts of clips.

    Args:
        safety: (prompt_id, video_id) -> +1 safe, -1 unsafe, 0 unknown.
        costs: prompt_id/video_id -> cost.
        judged: as for `judge_labels`.

    Returns:
        `both`, `cost_only`, `any_only`, `neither`: who calls it harmful -> `num`, and of these by label `num_unsafe`
        and `num_safe`; and `examples`, some names where the two differ.
    """
    cells: dict[str, Figures] = {
        name: {"num": 0, "num_unsafe": 0, "num_safe": 0} for name in ("both", "cost_only", "any_only", "neither")
    }
    examples: dict[str, list[str]] = {"cost_only": [], "any_only": []}
    for (prompt_id, video_id), sign in safety.items():
        name = f"{prompt_id}/{video_id}"
        by_cost, by_any = costs[name] > 0, "any" in judged[name].flags
        cell = ("both" if by_any else "cost_only") if by_cost else ("any_only" if by_any else "neither")
        cells[cell]["num"] += 1
        cells[cell]["num_unsafe"] += sign < 0
        cells[cell]["num_safe"] += sign > 0
        if cell in examples and len(examples[cell]) < NUM_EXAMPLES:
            examples[cell].append(name)
    return {**cells, "examples": examples}


def _judge_label(
    logits: np.ndarray, flagged: np.ndarray, applies: np.ndarray, prompts: np.ndarray, seed: int
) -> Figures:
    num_positive, num_negative = int(applies.sum()), int((~applies).sum())
    figures: Figures = dict.fromkeys(
        ("auroc", "average_precision", "precision", "recall", "f1", "recall_interval", "false_positive_rate",
         "false_positive_interval")
    )  # fmt: skip
    figures |= {
        "prevalence": num_positive / len(applies) if len(applies) else None,
        "num_positive": num_positive,
        "num_negative": num_negative,
        "num_flagged": int(flagged.sum()),
        "num_prompts": len(np.unique(prompts)),
        "reason": None,
    }
    if len(applies) < MIN_COMPARISONS:
        return figures | {"reason": f"{len(applies)} clips whose label is known, fewer than {MIN_COMPARISONS}"}
    reasons = []
    for whose, nobody, rows, rate, interval in (
        ("with", "none has", applies, "recall", "recall_interval"),
        ("without", "all have", ~applies, "false_positive_rate", "false_positive_interval"),
    ):
        if not rows.any():
            reasons.append(f"{nobody} the label")
            continue
        figures[rate] = float(flagged[rows].mean())
        if len(np.unique(prompts[rows])) > 1:
            figures[interval] = list(mean_interval(flagged[rows].astype(float), prompts[rows], seed=seed))
        else:
            reasons.append(f"those {whose} the label have one prompt, which gives no interval")
    if num_positive and num_negative:
        figures["auroc"] = roc_auc(logits, applies)
        figures["average_precision"] = average_precision(logits, applies)
        if flagged.any():
            both = precision_recall_f1(flagged, applies)
            figures |= {"precision": both.precision, "f1": both.f1}
        else:
            reasons.append("nothing is flagged")
    return figures | {"reason": "; ".join(reasons) or None}


def _judge_levels(
    head: str, targets: np.ndarray, judged: Sequence[Moderation], prompts: np.ndarray, seed: int
) -> Figures | None:
    if not any(one.severity for one in judged):
        return None
    levels = kind_of(head).decode(targets[:, label_columns(head)])
    rows = np.flatnonzero(levels >= 0)
    labelled, num_levels = levels[rows], len(classes_of(head))
    likeliest = np.array([np.argmax(list((judged[int(row)].severity or {}).values())) for row in rows], dtype=int)
    cells = np.bincount(num_levels * labelled + likeliest, minlength=num_levels**2)
    confusion = cells.reshape(num_levels, -1)
    figures: Figures = {"num": len(rows), "accuracy": None, "interval": None, "kappa": None, "reason": None}
    figures["confusion"] = confusion.tolist()
    if len(rows) < MIN_COMPARISONS:
        return figures | {"reason": f"{len(rows)} texts whose {head} is known, fewer than {MIN_COMPARISONS}"}
    right = (labelled == likeliest).astype(float)
    figures |= {"accuracy": float(right.mean()), "kappa": weighted_kappa(labelled, likeliest)}
    if len(np.unique(prompts[rows])) > 1:
        figures["interval"] = list(mean_interval(right, prompts[rows], seed=seed))
    return figures


def _hold_against(target: Target | None, figures: Figures) -> Figures:
    """A target holds unless the whole interval lies on its wrong side; that of a few clips says too little."""
    if target is None:
        return {"target": None, "holds_target": None}
    is_recall = target.kind == "recall"
    interval = figures["recall_interval" if is_recall else "false_positive_interval"]
    holds = None
    if interval is not None and figures["num_positive" if is_recall else "num_negative"] >= MIN_COMPARISONS:
        holds = interval[1] >= target.value if is_recall else interval[0] <= target.value
    return {"target": {target.kind: target.value}, "holds_target": holds}


def _macro(labels: Mapping[str, Figures]) -> Figures:
    figures: Figures = {}
    for name in ("auroc", "average_precision", "f1"):
        values = [
            one[name]
            for one in labels.values()
            if one[name] is not None and min(one["num_positive"], one["num_negative"]) >= MIN_COMPARISONS
        ]
        figures[name] = float(np.mean(values)) if values else None
        figures[f"num_labels_{name}"] = len(values)
    return figures
