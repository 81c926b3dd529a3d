"""Tables of a report: accuracy in parts of the data, and two models compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from safe_rlhf_video.pages.document import escape, table
from safe_rlhf_video.pages.report.sources import Evaluated
from safe_rlhf_video.pages.report.wording import capitalise, remark, together, with_interval

_PARTS = {"generator_pair": "Generators", "prompt_type": "Kind of prompt", "harm_category": "Harm in either clip"}
_MOST_COLUMNS = 3  # of dimensions, that a page has room for


def show_parts(evaluated: Evaluated) -> str:
    """The section of the breakdowns; empty without a dimension."""
    content = _show_unseen(evaluated)
    for key, title in _PARTS.items():
        parts = {judged.dimension: {part["name"]: part for part in judged.figures["breakdown"][key]}
                 for judged in evaluated.judged}  # fmt: skip
        names = list(dict.fromkeys(name for of_name in parts.values() for name in of_name))
        if names:
            content += f"<h3>{title}</h3>" + _tables(key.replace("_", " "), parts, {name: name for name in names})
    if not content:
        return ""
    return "<p>Accuracy with its interval, and after the dot the number of comparisons.</p>" + content


def _tables(first: str, parts: Mapping[str, Mapping[str, Any]], names: Mapping[str, str]) -> str:
    """Parts of the data as rows, dimensions as columns, as many in a table as there is room for.

    Args:
        first: what the first column shows.
        parts: dimension -> part -> figures.
        names: part -> how it is called.
    """
    shown = ""
    for start in range(0, len(parts), _MOST_COLUMNS):
        columns = list(parts)[start : start + _MOST_COLUMNS]
        rows = [[name, *(_part(parts[column].get(part)) for column in columns)] for part, name in names.items()]
        shown += table([first, *map(capitalise, columns)], rows, 0)
    return shown


def _show_unseen(evaluated: Evaluated) -> str:
    """Accuracy on clips of generators that training left out, where it left some out."""
    found = {judged.dimension: judged.figures["unseen_generators"] for judged in evaluated.judged
             if judged.figures["unseen_generators"]}  # fmt: skip
    sign = (evaluated.result["cost_sign"] or {}).get("unseen_generators")
    if sign:
        seen, unseen = ({**sign[part], "num_comparisons": sign[part]["num_safe"] + sign[part]["num_unsafe"]}
                        for part in ("seen", "unseen"))  # fmt: skip
        found["sign of the cost, by clip"] = {"generators": sign["generators"], "any": unseen, "none": seen}
    if not found:
        return ""
    heads_of: dict[str, list[str]] = {}
    for name, figures in found.items():
        heads_of.setdefault(", ".join(figures["generators"]), []).append(name.replace("_", " "))
    told = [f"Left out: {generators} (of {', '.join(names)})." for generators, names in heads_of.items()]
    names = {"any": "one or both clips of theirs", "both": "both", "none": "none"}
    return "<h3>Generators that training left out</h3>" + _tables("comparisons with", found, names) + remark(*told)


def _part(part: Mapping[str, Any] | None) -> str | None:
    if part is None:
        return None
    if part["accuracy"] is None:
        return str(part["reason"])
    return f"{with_interval(part['accuracy'], part['interval'])} · {part['num_comparisons']:,}"


def show_comparison(result: Mapping[str, Any]) -> str:
    """The section of two models on the same comparisons; empty where there was one model."""
    if not result.get("comparison"):
        return ""
    rows, reasons = [], []
    for dimension, figures in result["comparison"].items():
        difference, interval = figures["difference"], figures["interval"]
        text = None if difference is None else f"{100 * difference:+.1f}"
        if interval is not None:
            text = f"{text} [{100 * interval[0]:+.1f}, {100 * interval[1]:+.1f}]"
        ps = [None if figures[key] is None else f"{figures[key]:.2g}" for key in ("p_value", "p_value_holm")]
        if figures["p_value"] is None:
            reasons.append(f"{dimension.replace('_', ' ')}, figure: {figures['reason']}")
        rows.append(
            (capitalise(dimension), f"{figures['num_comparisons']:,}", with_interval(figures["accuracy_first"], None),
             with_interval(figures["accuracy_second"], None), text, *ps)
        )  # fmt: skip
    other = ", ".join(result["compared_models"])
    header = ["", "comparisons", "this", "the other", "difference, points", "McNemar p", "p by Holm"]
    return (
        f"<p>The other is {escape(other)}, on the same comparisons.</p>"
        + table(header, rows)
        + remark(*together(reasons))
    )
