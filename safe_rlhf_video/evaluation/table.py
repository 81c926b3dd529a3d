"""An evaluation as a table for the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from safe_rlhf_video.data.records import DIMENSIONS, SUB_DIMENSIONS

CONTROL_NAMES = {
    "generator_only": "which generator made it, nothing else",
    "prompt_only": "the prompt, nothing else",
    "is_safe_only": "the is_safe labels, nothing else",
    "random_backbone": "same heads, random backbone",
    "shuffled_prompt": "the model, under other prompts",
    "reversed_frames": "the model, frames reversed",
    "single_frame": "the model, a single frame",
}


def format_table(result: Mapping[str, Any]) -> str:
    """Accuracy, ceiling and controls of both dimensions, side by side; below, sub-dimensions and labels, a line each.

    Args:
        result: as `evaluate` returns it.
    """
    columns = [dimension for dimension in DIMENSIONS if result.get(dimension)]
    lines = [_row("", columns)] if columns else []

    def add(title: str, cell: Any) -> None:
        cells = [cell(result[dimension]) for dimension in columns]
        if any(cells):
            lines.append(_row(title, cells))

    add("test comparisons (prompts)", lambda r: f"{r['num_comparisons']} ({r['num_prompts']})")
    add("accuracy [95% interval]", lambda r: _with_interval(r["accuracy"], r["interval"]))
    add("ceiling: the hidden order, same labels", lambda r: _figure(r["ceiling"]))
    add(
        "accuracy / ceiling [paired 95%]",
        lambda r: _with_interval(r["fraction_of_ceiling"], r["fraction_of_ceiling_interval"]),
    )
    add("accuracy against the hidden order", lambda r: _figure(r["true_order_accuracy"]))
    add("ties", lambda r: _figure(r["tie_rate"]))
    add("labelled as ties, not counted", lambda r: str(r.get("num_tied_labels") or ""))
    add("accuracy with ties", lambda r: _with_interval(r["tie_aware"]["accuracy"], r["tie_aware"]["interval"]))
    add("calibration error of P(v1 > v2), ECE", lambda r: _calibration(r["calibration"]))
    add("Brier score", lambda r: _figure(r["calibration"]["brier"]))
    add("mean |P - hidden probability|", lambda r: _figure(r["calibration"]["mean_absolute_error"]))
    lines += [f"{dimension}: {reason}" for dimension in columns if (reason := result[dimension].get("reason"))]
    controls, expected = result["controls"], result["controls_expected"]
    if controls and columns:
        lines.append("controls: accuracy (as the hidden truth predicts it)")
        for name, figures in controls.items():
            cells = [_control(figures.get(dimension), expected[name].get(dimension)) for dimension in columns]
            lines.append(_row(f"  {CONTROL_NAMES[name]}", cells))
    if any(result.get(name) for name in SUB_DIMENSIONS):
        lines.append(
            _sub_row("", ["comparisons", "accuracy [95% interval]", "ceiling", "accuracy / ceiling", "generator"])
        )
    for name in SUB_DIMENSIONS:
        if figures := result.get(name):
            alone = controls.get("generator_only", {}).get(name)
            cells = [
                str(figures["num_comparisons"]),
                _with_interval(figures["accuracy"], figures["interval"]),
                _figure(figures["ceiling"]),
                _with_interval(figures["fraction_of_ceiling"], figures["fraction_of_ceiling_interval"]),
                _figure(alone),
            ]
            lines.append(_sub_row(name.replace("_", " "), cells))
    sign = result.get("cost_sign")
    if sign:
        lines.append(
            f"cost sign on {sign['num_safe']} safe and {sign['num_unsafe']} unsafe clips: accuracy "
            f"{_figure(sign['accuracy']) or '-'}, balanced {_figure(sign['balanced_accuracy']) or '-'}"
            + (f" ({sign['reason']})" if sign.get("reason") else "")
        )
        others = [f"{CONTROL_NAMES[name]} {_figure(figures['cost_sign'])}" for name, figures in controls.items()
                  if figures.get("cost_sign") is not None]  # fmt: skip
        if others:
            lines.append(f"  balanced, controls: {'; '.join(others)}")
    lines += _format_unseen(result)
    if result.get("moderation"):
        lines += _moderation(result["moderation"])
    if num_shared := result.get("num_prompts_also_in_training"):
        lines.append(f"{num_shared} of the prompts are in the training data too: these figures may flatter the model")
    return "\n".join(lines) or "nothing to judge: no record has a label that a head of these models learns from"


def _moderation(figures: Mapping[str, Any]) -> list[str]:
    """A line a harm label, and where the cost's sign says something else than the flag of any harm."""
    labels = figures["labels"]
    columns = ["with / without", "AUROC", "AP", "precision", "recall", "F1", "false positives [95%]", "target"]
    lines = [_label_row("harm labels", columns)] if labels else []
    for label, one in labels.items():
        target = "; ".join(f"{kind.replace('_', ' ')} {value:g}" for kind, value in (one["target"] or {}).items())
        missed = " missed" if one["holds_target"] is False else ""
        cells = [f"{one['num_positive']} / {one['num_negative']}"]
        cells += [
            "-" if one[name] is None else f"{one[name]:.3f}"
            for name in ("auroc", "average_precision", "precision", "recall", "f1")
        ]
        cells += [_with_interval(one["false_positive_rate"], one["false_positive_interval"]), target + missed or "-"]
        lines.append(_label_row(label.replace("_", " "), cells))
    labels_of: dict[str, list[str]] = {}
    for label, one in labels.items():
        if one["reason"] is not None:
            labels_of.setdefault(one["reason"], []).append(label.replace("_", " "))
    lines += [f"  {', '.join(names)}: {reason}" for reason, names in labels_of.items()]
    macro = figures["macro"]
    if macro["auroc"] is not None:
        lines.append(
            f"means over labels: AUROC {macro['auroc']:.4f} of {macro['num_labels_auroc']}, average precision "
            f"{macro['average_precision']:.4f} of {macro['num_labels_average_precision']}"
        )
    if severity := figures.get("severity"):
        lines.append(
            f"severity of {severity['num']} texts: likeliest level right "
            f"{_with_interval(severity['accuracy'], severity['interval']) or '-'}, quadratic-weighted kappa "
            f"{_figure(severity['kappa']) or '-'}" + (f" ({severity['reason']})" if severity["reason"] else "")
        )
    if without := sum(one["target"] is None for one in labels.values()):
        lines.append(f"{without} labels without a calibrated threshold, flagged above a probability of one half")
    if cells_of := figures.get("cost_sign_against_any"):
        texts = (
            f"{name.replace('_', ' ')} {cell['num']} ({cell['num_unsafe']} unsafe, {cell['num_safe']} safe)"
            for name, cell in cells_of.items()
            if name != "examples"
        )
        lines.append(f"called harmful by the cost's sign and by the flag of any harm: {', '.join(texts)}")
    return lines


def _format_unseen(result: Mapping[str, Any]) -> list[str]:
    """Accuracy with and without generators that training did not see, a line a dimension; nothing without the fact."""
    judged = {name: found for name in (*DIMENSIONS, *SUB_DIMENSIONS)
              if (found := (result.get(name) or {}).get("unseen_generators"))}  # fmt: skip
    lines = []
    for left_out in sorted({tuple(found["generators"]) for found in judged.values()}):
        names = ", ".join(left_out)
        lines.append(f"clips of generators that training left out ({names}): accuracy [95% interval] of comparisons")
        lines.append(_unseen_row("", ["with one or two", "of two", "with none"]))
        for name, found in judged.items():
            if tuple(found["generators"]) == left_out:
                cells = [_part(found[part]) for part in ("any", "both", "none")]
                lines.append(_unseen_row(f"  {name.replace('_', ' ')}", cells))
    sign = (result.get("cost_sign") or {}).get("unseen_generators")
    if sign:
        cells = [_part(sign[part], sign[part]["num_safe"] + sign[part]["num_unsafe"]) for part in ("unseen", "seen")]
        lines.append(_unseen_row("  cost sign, by clip", [cells[0], "", cells[1]]))
    return lines


def _part(figures: Mapping[str, Any], num: int | None = None) -> str:
    """`num` of a part, if not its comparisons, and its accuracy."""
    num = figures["num_comparisons"] if num is None else num
    if figures["accuracy"] is None:
        return f"{num}: -"
    return f"{num}: {_with_interval(figures['accuracy'], figures['interval'])}"


def _unseen_row(title: str, cells: list[str]) -> str:
    return f"{title:<26}" + "".join(f"{cell:>30}" for cell in cells)


def format_comparison(result: Mapping[str, Any]) -> str:
    """Two models side by side, a line a dimension.

    Args:
        result: as `compare` returns it.
    """
    columns = ("comparisons", "this", "other", "difference [95%]", "McNemar p", "p by Holm")
    widths = (12, 9, 9, 26, 11, 11)
    lines = [f"{'':<22}" + "".join(f"{name:>{width}}" for name, width in zip(columns, widths, strict=True))]
    for dimension, figures in result.items():
        cells = (
            str(figures["num_comparisons"]),
            _figure(figures["accuracy_first"]),
            _figure(figures["accuracy_second"]),
            _with_interval(figures["difference"], figures["interval"]),
            "-" if figures["p_value"] is None else f"{figures['p_value']:.2g}",
            "-" if figures["p_value_holm"] is None else f"{figures['p_value_holm']:.2g}",
        )
        name = dimension.replace("_", " ")
        lines.append(f"{name:<22}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True)))
    return "\n".join(lines)


def _calibration(figures: Mapping[str, Any]) -> str:
    if figures["ece"] is None:
        return "-"
    return f"{figures['ece']:.4f}" + ("" if figures["is_calibrated"] else " (not calibrated)")


def _row(title: str, cells: list[str]) -> str:
    return f"{title:<42}" + "".join(f"{cell:>26}" for cell in cells)


def _sub_row(title: str, cells: list[str]) -> str:
    widths = (12, 24, 9, 24, 11)
    return f"{title:<22}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))


def _label_row(title: str, cells: list[str]) -> str:
    widths = (15, 8, 8, 11, 8, 8, 25, 34)
    return f"{title:<36}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _with_interval(value: float | None, interval: list[float] | None) -> str:
    if value is None or interval is None:
        return _figure(value)
    return f"{value:.4f} [{interval[0]:.3f}, {interval[1]:.3f}]"


def _control(value: float | None, expected: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if expected is None else f"{value:.4f} ({expected:.4f})"
