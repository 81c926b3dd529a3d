"""Makes the tables of a report: all figures at a glance, harm labels, parts of the data, and two models compared."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from safe_rlhf_video.evaluation.control_words import warn_of_gaps
from safe_rlhf_video.evaluation.results import Evaluation, PartFigures, SignPart
from safe_rlhf_video.evaluation.seen_prompts import MARK, describe_seen
from safe_rlhf_video.heads import HEADS, Head
from safe_rlhf_video.kinds.label import LabelFigures
from safe_rlhf_video.pages.document import Table
from safe_rlhf_video.pages.report_data import JudgedDimension, ReportData
from safe_rlhf_video.stats.checks import MIN_COMPARISONS
from safe_rlhf_video.stats.intervals import Interval
from safe_rlhf_video.wording import capitalise, decimals, share, words

_MOST_COLUMNS = 3  # dimensions that a table of parts has room for
_TARGETS = {"recall": "recall ≥", "false_positive_rate": "FPR ≤"}
_HELD = {True: "kept", False: "missed", None: "undecided"}
_PARTS = {"generator_pair": "Generators", "prompt_type": "Kind of prompt", "harm_category": "Harm in either clip"}

Part = PartFigures | SignPart
Reasons = dict[tuple[str, str], list[str]]  # which figure is missing, and why -> of what


@dataclass(frozen=True)
class ReportTables:
    """Every table of a report.

    Attributes:
        warnings: a sentence for each model that saw prompts of the data, or does not say, and for each figure that is
            not clearly above its strongest control.
        parts: heading -> accuracy in parts of the data.
        comparison: None where there was one model.
    """

    summary: Table
    warnings: Sequence[str]
    not_judged: Reasons
    labels: Table
    graded: Mapping[str, Table]
    parts: Mapping[str, Sequence[Table]]
    comparison: Table | None
    not_compared: Reasons


def report_tables(data: ReportData) -> ReportTables:
    """Makes all tables."""
    moderation, in_sample = data.evaluation.moderation, data.evaluation.in_sample
    graded = {head: one.table(HEADS[head]) for head, one in moderation.graded.items() if one} if moderation else {}
    return ReportTables(
        summary=_summarise(data.dimensions, data.evaluation),
        warnings=[*describe_seen(data.evaluation.seen_prompts), *warn_of_gaps(data.evaluation.control_gaps)],
        not_judged=_explain_dimensions(data.dimensions),
        labels=_show_labels(data.labels, data.evaluation),
        graded={
            head: Table(header, rows, note="in-sample" if f"moderation.{head}" in in_sample else "")
            for head, (header, *rows) in graded.items()
        },
        parts={heading: tables for heading, tables in _show_parts(data) if tables},
        comparison=_compare(data.evaluation),
        not_compared=_explain_comparison(data.evaluation),
    )  # fmt: skip


def _summarise(dimensions: Sequence[JudgedDimension], evaluation: Evaluation) -> Table:
    """Every figure of the dimensions, in-sample ones with a mark; a column without any figure is left out."""
    header = ["", "comparisons (prompts)", "accuracy", "ceiling", "accuracy / ceiling",
              "above the strongest control", "with ties", "ECE", "temperature"]  # fmt: skip

    def mark(text: str | None, *places: str) -> str | None:
        return text + MARK if text and any(place in evaluation.in_sample for place in places) else text

    rows = []
    for judged in dimensions:
        figures, probability, ties = judged.figures, judged.figures.calibration, judged.figures.tie_aware
        gap = evaluation.control_gaps.get(judged.name)
        rows.append([
            capitalise(judged.name),
            f"{figures.num_comparisons:,} ({figures.num_prompts:,})",
            mark(share(figures.accuracy, figures.interval), judged.name),
            share(figures.ceiling),
            mark(share(figures.fraction_of_ceiling, figures.fraction_of_ceiling_interval), judged.name),
            mark(_points(gap.difference, gap.interval) if gap else None, judged.name),
            mark(share(ties.accuracy, ties.interval), judged.name, f"{judged.name}.tie_aware"),
            mark(decimals(probability.ece), judged.name, f"{judged.name}.calibration"),
            decimals(probability.temperature) if probability.is_calibrated else "not calibrated",
        ])  # fmt: skip
    kept = [column for column in range(len(header)) if any(row[column] is not None for row in rows)]
    return Table([header[column] for column in kept], [[row[column] for column in kept] for row in rows])


def _explain_dimensions(dimensions: Sequence[JudgedDimension]) -> Reasons:
    reasons: Reasons = {}
    for judged in dimensions:
        figures, ties, probability = judged.figures, judged.figures.tie_aware, judged.figures.calibration
        for name, is_missing, why in (
            ("accuracy", figures.accuracy is None, figures.reason),
            ("interval", figures.accuracy is not None and figures.interval is None, figures.reason),
            ("accuracy with ties", ties.accuracy is None, ties.reason),
            ("ECE", probability.ece is None, probability.reason),
        ):  # fmt: skip
            if is_missing:
                reasons.setdefault((name, _without_name(why)), []).append(words(judged.name))
    return reasons


def _without_name(reason: str | None) -> str:
    """A reason behind words that name what is missing, as those of `too_few_prompts` do."""
    return (reason or "").removeprefix("no interval: ")


def _show_labels(labels: Mapping[str, LabelFigures], evaluation: Evaluation) -> Table:
    """Figures of harm labels; those without any are named in the note, with the reason."""
    header = ["", "with / without", "AUROC", "AP", "precision", "recall", "false positives", "target"]
    has_gaps = bool(labels.keys() & evaluation.control_gaps.keys())
    header += ["AUROC above the control, points"] if has_gaps else []
    rows, bare = [], dict[str, list[str]]()
    for head, figures in labels.items():
        title = HEADS[head].title
        if (figures.auroc, figures.recall, figures.false_positive_rate) == (None, None, None):
            bare.setdefault(figures.reason or "", []).append(f"{title} ({figures.num_positive:,})")
        else:
            gap = evaluation.control_gaps.get(head)
            above = [_points(gap.difference, gap.interval) if gap else None] if has_gaps else []
            rows.append([*_label_row(HEADS[head], figures, evaluation.in_sample), *above])
    note = "; ".join(f"no figure of {', '.join(names)}: {reason}" for reason, names in bare.items())
    return Table(header, rows, note=note)


def _label_row(head: Head, figures: LabelFigures, in_sample: Mapping[str, str]) -> list[str | None]:
    target = "; ".join(f"{_TARGETS[kind]} {100 * value:g}%" for kind, value in (figures.target or {}).items())
    return [
        head.title + (MARK if f"moderation.labels.{head.label}" in in_sample else ""),
        f"{figures.num_positive:,} / {figures.num_negative:,}",
        decimals(figures.auroc),
        decimals(figures.average_precision),
        share(figures.precision),
        share(figures.recall, figures.recall_interval),
        share(figures.false_positive_rate, figures.false_positive_interval),
        f"{target}, {_HELD[figures.holds_target]}" if target else None,
    ]


def _show_parts(data: ReportData) -> Iterator[tuple[str, list[Table]]]:
    title_of = {judged.name: judged.name + _mark(data, judged.name) for judged in data.dimensions}
    unseen: dict[str, dict[str, Part]] = {
        title_of[judged.name]: {"any": figures.any, "both": figures.both, "none": figures.none}
        for judged in data.dimensions
        if (figures := judged.figures.unseen_generators)
    }
    sign = data.evaluation.cost_sign
    if sign and sign.unseen_generators:
        of_sign = {"any": sign.unseen_generators.unseen, "none": sign.unseen_generators.seen}
        unseen["sign of the cost, by clip" + _mark(data, "cost_sign")] = {**of_sign}
    names = {"any": "one or both clips of theirs", "both": "both", "none": "none"}
    yield "Generators that training left out", _tables("comparisons with", unseen, names)
    for key, heading in _PARTS.items():
        parts: dict[str, dict[str, Part]] = {
            title_of[judged.name]: {part.name: part for part in getattr(judged.figures.breakdown, key)}
            for judged in data.dimensions
        }
        yield heading, _tables(words(key), parts, {name: name for of_name in parts.values() for name in of_name})


def _mark(data: ReportData, place: str) -> str:
    return MARK if place in data.evaluation.in_sample else ""


def _tables(first: str, parts: Mapping[str, Mapping[str, Part]], names: Mapping[str, str]) -> list[Table]:
    """Parts of the data as rows, dimensions as columns, as many in a table as there is room for.

    Args:
        first: what the first column shows.
        parts: dimension -> part -> figures.
        names: part -> what it is called.
    """
    of_part = {part: [found for of_name in parts.values() if (found := of_name.get(part))] for part in names}
    kept = [part for part, found in of_part.items() if any(one.accuracy is not None for one in found)]
    rare = [f"{name} ({max(map(_num, of_part[part])):,})" for part, name in names.items()
            if of_part[part] and part not in kept]  # fmt: skip
    shown = [list(parts)[start : start + _MOST_COLUMNS] for start in range(0, len(parts), _MOST_COLUMNS)]
    tables = [
        Table([first, *map(capitalise, columns)],
              [[names[part], *(_describe_part(parts[each].get(part)) for each in columns)] for part in kept],
              narrow=0)
        for columns in shown if kept
    ]  # fmt: skip
    if rare:
        tables.append(Table((), (), note=f"fewer than {MIN_COMPARISONS}, too few for a figure: {', '.join(rare)}"))
    return tables


def _describe_part(part: Part | None) -> str | None:
    if part is None or part.accuracy is None:
        return None if part is None else part.reason
    return f"{share(part.accuracy, part.interval)} · {_num(part):,}"


def _num(part: Part) -> int:
    return part.num_comparisons if isinstance(part, PartFigures) else part.num_safe + part.num_unsafe


def _compare(evaluation: Evaluation) -> Table | None:
    header = ["", "comparisons", "this", "the other", "difference, points", "p by prompt", "p by Holm"]
    rows = []
    for dimension, figures in (evaluation.comparison or {}).items():
        text = None if figures.difference is None else _points(figures.difference, figures.interval)
        ps = [None if value is None else f"{value:.2g}" for value in (figures.p_value, figures.p_value_holm)]
        mark = MARK if f"comparison.{dimension}" in evaluation.in_sample else ""
        rows.append([capitalise(dimension) + mark, f"{figures.num_comparisons:,}", share(figures.accuracy_first),
                     share(figures.accuracy_second), text, *ps])  # fmt: skip
    return Table(header, rows) if rows else None


def _points(difference: float, interval: Interval | None) -> str:
    """A difference of two shares in points of a per cent, with its interval."""
    ends = "" if interval is None else f" [{100 * interval[0]:+.1f} to {100 * interval[1]:+.1f}]"
    return f"{100 * difference:+.1f}{ends}"


def _explain_comparison(evaluation: Evaluation) -> Reasons:
    reasons: Reasons = {}
    for dimension, figures in (evaluation.comparison or {}).items():
        if figures.p_value is None or figures.interval is None:
            missing = "figure" if figures.p_value is None else "interval"
            reasons.setdefault((missing, _without_name(figures.reason)), []).append(words(dimension))
    return reasons
