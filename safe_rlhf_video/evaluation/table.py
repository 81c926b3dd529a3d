"""Formats an evaluation as tables for the terminal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from safe_rlhf_video.data.records import DIMENSIONS, SUB_DIMENSIONS
from safe_rlhf_video.evaluation.control_words import CONTROL_NAMES, describe_gap, warn_of_gaps
from safe_rlhf_video.evaluation.results import (
    Agreement,
    ComparisonFigures,
    DimensionFigures,
    Evaluation,
    ModerationFigures,
    PartFigures,
    SignPart,
)
from safe_rlhf_video.evaluation.seen_prompts import MARK, describe_seen
from safe_rlhf_video.heads import HEAD_OF_LABEL
from safe_rlhf_video.kinds.label import LabelFigures
from safe_rlhf_video.wording import count, figure, with_interval

# Rows of the table of dimensions, each with how its cell is written. Figures of the model are marked where they are
# in-sample: all of them where its training saw the prompts, those of `CALIBRATED` where its calibration did.
ROWS: Mapping[str, Callable[[DimensionFigures], str]] = {
    "test comparisons (prompts)": lambda one: f"{one.num_comparisons} ({one.num_prompts})",
    "accuracy [95% interval]": lambda one: with_interval(one.accuracy, one.interval),
    "ceiling: the hidden order, same labels": lambda one: figure(one.ceiling),
    "accuracy / ceiling [paired 95%]": lambda one: with_interval(
        one.fraction_of_ceiling, one.fraction_of_ceiling_interval
    ),
    "accuracy against the hidden order": lambda one: figure(one.true_order_accuracy),
    "ties": lambda one: figure(one.tie_rate),
    "labelled as ties, not counted": lambda one: str(one.num_tied_labels or ""),
    "accuracy with ties": lambda one: with_interval(one.tie_aware.accuracy, one.tie_aware.interval),
    "calibration error of P(v1 > v2), ECE": lambda one: _calibration(one),
    "  ECE of true probabilities, as many": lambda one: _perfect(one),
    "Brier score": lambda one: figure(one.calibration.brier),
    "mean |P - hidden probability|": lambda one: figure(one.calibration.mean_absolute_error),
}
UNMARKED = ("test comparisons (prompts)", "ceiling: the hidden order, same labels", "labelled as ties, not counted")
CALIBRATED = {
    "accuracy with ties": "tie_aware",
    "calibration error of P(v1 > v2), ECE": "calibration",
    "  ECE of true probabilities, as many": "calibration",
    "Brier score": "calibration",
    "mean |P - hidden probability|": "calibration",
}
SIGN_FIGURES = ("cost_sign", "cost_sign_auroc")
SIGN_WIDTHS = (26, 26)
SUB_WIDTHS = (12, 24, 9, 24, 11)
LABEL_WIDTHS = (15, 8, 8, 11, 8, 8, 25, 34, 26)
COMPARISON_WIDTHS = (12, 9, 9, 26, 13, 11)


def format_table(evaluation: Evaluation) -> str:
    """Formats an evaluation: helpfulness and harmlessness side by side, then sub-dimensions and labels, a line each."""
    lines = [*_format_dimensions(evaluation), *_format_sub_dimensions(evaluation), *_format_sign(evaluation),
             *_format_unseen(evaluation), *warn_of_gaps(evaluation.control_gaps)]  # fmt: skip
    if evaluation.moderation:
        lines += _format_moderation(evaluation.moderation, evaluation)
    if num_shared := evaluation.num_prompts_also_in_training:
        lines.append(f"{num_shared} of the prompts are in the training data too: these figures may flatter the model")
    lines += [f"{MARK} {line}" if "in-sample" in line else line for line in describe_seen(evaluation.seen_prompts)]
    return "\n".join(lines) or "nothing to judge: no record has a label that a head of these models learns from"


def format_comparison(comparison: Mapping[str, ComparisonFigures], in_sample: Mapping[str, str]) -> str:
    """Formats two models side by side, a line a dimension.

    Args:
        in_sample: of the evaluation; what it names is marked.
    """
    columns = ("comparisons", "this", "other", "difference [95%]", "p by prompt", "p by Holm")
    lines = [_row("", columns, 22, COMPARISON_WIDTHS)]
    for dimension, one in comparison.items():
        cells = [
            str(one.num_comparisons),
            figure(one.accuracy_first),
            figure(one.accuracy_second),
            with_interval(one.difference, one.interval),
            "-" if one.p_value is None else f"{one.p_value:.2g}",
            "-" if one.p_value_holm is None else f"{one.p_value_holm:.2g}",
        ]
        mark = MARK if f"comparison.{dimension}" in in_sample else ""
        lines.append(_row(dimension.replace("_", " ") + mark, cells, 22, COMPARISON_WIDTHS))
    lines += [f"{dimension.replace('_', ' ')}: {one.reason}" for dimension, one in comparison.items() if one.reason]
    return "\n".join(lines)


def _format_dimensions(evaluation: Evaluation) -> Iterator[str]:
    columns = {name: found for name in DIMENSIONS if (found := evaluation.dimensions[name])}
    if not columns:
        return
    widths = (26,) * len(columns)
    yield _row("", list(columns), 42, widths)
    for title, write in ROWS.items():
        cells = [_marked(write(found), title, name, evaluation.in_sample) for name, found in columns.items()]
        if any(cells):
            yield _row(title, cells, 42, widths)
    yield from (f"{name}: {found.reason}" for name, found in columns.items() if found.reason)
    if evaluation.controls:
        expectations = [one for found in evaluation.controls_expected.values() for one in found.values()]
        knows_truth = any(one is not None for one in expectations)
        yield "controls: accuracy" + (" (as the hidden truth predicts it)" if knows_truth else "")
    for control, figures in evaluation.controls.items():
        expected = evaluation.controls_expected[control]
        cells = [_control(figures.get(name), expected.get(name)) for name in columns]
        yield _row(f"  {CONTROL_NAMES[control]}", cells, 42, widths)
    if any(name in evaluation.control_gaps for name in columns):
        gaps = {name: describe_gap(evaluation.control_gaps.get(name)) for name in columns}
        cells = [_marked(gap, "", name, evaluation.in_sample) for name, gap in gaps.items()]
        yield _row("above the strongest control [paired 95%]", cells, 42, widths)


def _format_sub_dimensions(evaluation: Evaluation) -> Iterator[str]:
    found = {name: one for name in SUB_DIMENSIONS if (one := evaluation.dimensions[name])}
    if not found:
        return
    header = ["comparisons", "accuracy [95% interval]", "ceiling", "accuracy / ceiling", "generator"]
    rows = [
        [
            str(one.num_comparisons),
            _marked(with_interval(one.accuracy, one.interval), "", name, evaluation.in_sample),
            figure(one.ceiling),
            _marked(
                with_interval(one.fraction_of_ceiling, one.fraction_of_ceiling_interval), "", name, evaluation.in_sample
            ),
            figure(evaluation.controls.get("generator_only", {}).get(name)),
        ]
        for name, one in found.items()
    ]
    kept = [column for column in range(len(header)) if any(row[column] for row in rows)]
    widths = [SUB_WIDTHS[column] for column in kept]
    for title, cells in zip(["", *found], [header, *rows], strict=True):
        yield _row(title.replace("_", " "), [cells[column] for column in kept], 22, widths)
    yield from (f"{name.replace('_', ' ')}: {one.reason}" for name, one in found.items() if one.reason)


def _format_sign(evaluation: Evaluation) -> Iterator[str]:
    sign = evaluation.cost_sign
    if sign is None:
        return
    mark = MARK if "cost_sign" in evaluation.in_sample else ""
    yield (
        f"cost sign{mark} on {sign.num_safe} safe and {sign.num_unsafe} unsafe clips: accuracy "
        f"{with_interval(sign.accuracy, sign.interval) or '-'}, balanced "
        f"{with_interval(sign.balanced_accuracy, sign.balanced_interval) or '-'}, AUROC "
        f"{figure(sign.auroc) or '-'}" + (f" ({sign.reason})" if sign.reason else "")
    )
    controls = {name: figures for name, figures in evaluation.controls.items() if "cost_sign_auroc" in figures}
    if controls:
        yield _row("  controls, cut at the share of unsafe clips in training", ["balanced", "AUROC"], 56, SIGN_WIDTHS)
    for name, figures in controls.items():
        cells = [figure(figures[key]) or "-" for key in SIGN_FIGURES]
        yield _row(f"    {CONTROL_NAMES[name]}", cells, 56, SIGN_WIDTHS)
    if any(key in evaluation.control_gaps for key in SIGN_FIGURES):
        gaps = [describe_gap(evaluation.control_gaps.get(key)) for key in SIGN_FIGURES]
        cells = [_marked(gap, "", "cost_sign", evaluation.in_sample) for gap in gaps]
        yield _row("  above the strongest control [paired 95%]", cells, 56, SIGN_WIDTHS)


def _format_unseen(evaluation: Evaluation) -> Iterator[str]:
    """Accuracy with and without generators that training left out; nothing where it left none out."""
    judged = {name: one.unseen_generators for name in (*DIMENSIONS, *SUB_DIMENSIONS)
              if (one := evaluation.dimensions[name]) and one.unseen_generators}  # fmt: skip
    widths = (30, 30, 30)
    for left_out in sorted({found.generators for found in judged.values()}):
        names = ", ".join(left_out)
        yield f"clips of generators that training left out ({names}): accuracy [95% interval] of comparisons"
        yield _row("", ["with one or two", "of two", "with none"], 26, widths)
        for name, found in judged.items():
            if found.generators == left_out:
                cells = [_part(part) for part in (found.any, found.both, found.none)]
                yield _row(_marked(f"  {name.replace('_', ' ')}", "", name, evaluation.in_sample), cells, 26, widths)
    if evaluation.cost_sign and (sign := evaluation.cost_sign.unseen_generators):
        title = _marked("  cost sign, by clip", "", "cost_sign", evaluation.in_sample)
        yield _row(title, [_part(sign.unseen), "", _part(sign.seen)], 26, widths)


def _format_moderation(figures: ModerationFigures, evaluation: Evaluation) -> Iterator[str]:
    """A line a harm label, then what holds for several of them."""
    labels, in_sample, gaps = figures.labels, evaluation.in_sample, evaluation.control_gaps
    if labels:
        columns = ["with / without", "AUROC", "AP", "precision", "recall", "F1", "false positives [95%]", "target"]
        columns += ["AUROC above the control"] if any(HEAD_OF_LABEL[label] in gaps for label in labels) else []
        yield _row("harm labels", columns, 36, LABEL_WIDTHS[: len(columns)])
    labels_of: dict[str, list[str]] = {}
    for label, one in labels.items():
        mark = MARK if f"moderation.labels.{label}" in in_sample else ""
        gap = gaps.get(HEAD_OF_LABEL[label])
        cells = [*_label_cells(one), *([describe_gap(gap)] if gap else [])]  # without any, there is no such column
        yield _row(label.replace("_", " ") + mark, cells, 36, LABEL_WIDTHS[: len(cells)])
        if one.reason is not None:
            labels_of.setdefault(one.reason, []).append(label.replace("_", " "))
    yield from (f"  {', '.join(names)}: {reason}" for reason, names in labels_of.items())
    macro = figures.macro
    if macro.auroc is not None:
        yield (
            f"means over labels: AUROC {macro.auroc:.4f} of {macro.num_labels_auroc}, average precision "
            f"{macro.average_precision:.4f} of {macro.num_labels_average_precision}"
        )
    for head, graded in figures.graded.items():
        if graded:
            yield graded.line(head) + (MARK if f"moderation.{head}" in in_sample else "")
    if without := sum(one.target is None for one in labels.values()):
        yield f"{count(without, 'label')} without a calibrated threshold, flagged above a probability of one half"
    if figures.cost_sign_against_any:
        yield _agreement(figures.cost_sign_against_any)


def _label_cells(one: LabelFigures) -> list[str]:
    target = "; ".join(f"{kind.replace('_', ' ')} {value:g}" for kind, value in (one.target or {}).items())
    held = {True: " kept", False: " missed", None: " undecided"}[one.holds_target]
    figures = (one.auroc, one.average_precision, one.precision, one.recall, one.f1)
    return [
        f"{one.num_positive} / {one.num_negative}",
        *("-" if value is None else f"{value:.3f}" for value in figures),
        with_interval(one.false_positive_rate, one.false_positive_interval),
        target + held if target else "-",
    ]


def _agreement(found: Agreement) -> str:
    cells = {"both": found.both, "cost only": found.cost_only, "any only": found.any_only, "neither": found.neither}
    texts = (f"{name} {cell.num} ({cell.num_unsafe} unsafe, {cell.num_safe} safe)" for name, cell in cells.items())
    return f"called harmful by the cost's sign and by the flag of any harm: {', '.join(texts)}"


def _part(part: PartFigures | SignPart) -> str:
    """The number of comparisons or clips of a part, and its accuracy."""
    num = part.num_comparisons if isinstance(part, PartFigures) else part.num_safe + part.num_unsafe
    return f"{num}: {with_interval(part.accuracy, part.interval) or '-'}"


def _calibration(one: DimensionFigures) -> str:
    if one.calibration.ece is None:
        return "-"
    return f"{one.calibration.ece:.4f}" + ("" if one.calibration.is_calibrated else " (not calibrated)")


def _perfect(one: DimensionFigures) -> str:
    if one.calibration.perfect_ece is None or one.calibration.perfect_ece_95 is None:
        return ""
    return f"{one.calibration.perfect_ece:.4f}, 95% below {one.calibration.perfect_ece_95:.4f}"


def _marked(text: str, title: str, dimension: str, in_sample: Mapping[str, str]) -> str:
    """The cell of a row of `ROWS`, with a mark if its figure is in-sample."""
    places = {dimension, f"{dimension}.{CALIBRATED[title]}"} if title in CALIBRATED else {dimension}
    is_marked = text not in ("", "-") and title not in UNMARKED and bool(places & in_sample.keys())
    return text + MARK if is_marked else text


def _control(value: float | None, expected: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if expected is None else f"{value:.4f} ({expected:.4f})"


def _row(title: str, cells: Sequence[str], title_width: int, widths: Sequence[int]) -> str:
    return f"{title:<{title_width}}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
