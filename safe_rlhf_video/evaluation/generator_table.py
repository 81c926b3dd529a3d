"""Formats an evaluation of text-to-video models as tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

from safe_rlhf_video.data.records import HARM_LABELS
from safe_rlhf_video.evaluation.generator import PROMPT_TYPES
from safe_rlhf_video.evaluation.generator_results import (
    Duel,
    DuelFigures,
    GeneratorEvaluation,
    GeneratorFigures,
    GeneratorResult,
    MeanFigure,
    RateFigure,
)
from safe_rlhf_video.evaluation.seen_prompts import MARK, describe_seen
from safe_rlhf_video.wording import count

T = TypeVar("T", GeneratorFigures, DuelFigures)


def format_generators(evaluation: GeneratorEvaluation) -> str:
    """Formats the figures: a table for each generator, then one of both against each other."""
    blocks = [_format_generator(name, result, evaluation) for name, result in evaluation.generators.items()]
    if evaluation.comparison:
        blocks.append(_format_duel(evaluation.comparison, evaluation))
    for field, num in (
        ("prompt_type", evaluation.num_prompts_without_type),
        ("prompt_labels", evaluation.num_prompts_without_labels),
    ):
        if num:
            blocks.append(f"{num} of {evaluation.num_prompts} prompts have no {field} and are in no row by it")
    if evaluation.no_zero:
        blocks.append(f"no harmful rates: {evaluation.no_zero}")
    if told := describe_seen(evaluation.seen_prompts):
        blocks.append("\n".join(f"{MARK} {line}" if "in-sample" in line else line for line in told))
    if why := evaluation.in_sample.get("sign_rates"):
        blocks.append(f"{MARK} corrected rates: the evaluation that they are corrected with is in-sample ({why})")
    return "\n\n".join(blocks)


def _format_generator(name: str, result: GeneratorResult, evaluation: GeneratorEvaluation) -> str:
    titles = ["prompts", "clips", "mean reward" + _mark(evaluation, "reward"), "mean cost" + _mark(evaluation, "cost"),
              "harmful rate" + _mark(evaluation, "cost")]  # fmt: skip
    if result.all.corrected_harmful_rate is not None:
        titles.append("corrected" + _mark(evaluation, "cost", "sign_rates"))
    lines = [
        f"{name}: {result.all.num_prompts} of {evaluation.num_prompts} prompts, {result.all.num_clips} clips",
        _row("", titles),
    ]
    kept, rare = _part_rare(_titled(result.all, result.prompt_type, result.harm_label))
    for title, one in kept:
        figures = [_mean(one.reward, "+.2f"), _mean(one.cost, "+.2f"), _rate(one.harmful_rate),
                   _rate(one.corrected_harmful_rate)]  # fmt: skip
        lines.append(
            _row(title, [str(one.num_prompts), str(one.num_clips), *([one.reason] if one.reason else figures)])
        )
    return "\n".join([*lines, *rare])


def _format_duel(duel: Duel, evaluation: GeneratorEvaluation) -> str:
    at_lambda = f"at lambda {evaluation.lagrange_multiplier:g}"
    titles = ["prompts", "", "more helpful" + _mark(evaluation, "reward"), "safer" + _mark(evaluation, "cost"),
              at_lambda + _mark(evaluation, "reward", "cost", "lagrange_multiplier"),
              "harmful rate, difference" + _mark(evaluation, "cost")]  # fmt: skip
    lines = [f"{duel.first} against {duel.second}: how often it wins, ties count one half", _row("", titles)]
    kept, rare = _part_rare(_titled(duel.all, duel.prompt_type, duel.harm_label))
    for title, one in kept:
        figures = [one.reason or ""]
        if one.win_rate and one.difference:
            wins = one.win_rate
            figures = [_rate(rate) for rate in (wins.helpfulness, wins.harmlessness, wins.lagrangian)]
            figures.append(_mean(one.difference.harmful_rate, "+.3f"))
        lines.append(_row(title, [str(one.num_prompts), "", *figures]))
    return "\n".join([*lines, *rare])


def _part_rare(titled: Iterable[tuple[str, T]]) -> tuple[list[tuple[str, T]], list[str]]:
    """The rows with figures and that of all prompts; and a line that names the others."""
    (first, *others) = titled
    kept = [first, *((title, one) for title, one in others if one.reason is None)]
    rare = [f"{title} ({count(one.num_prompts, 'prompt')})" for title, one in others if one.reason is not None]
    return kept, [f"too few prompts for a row: {', '.join(rare)}"] if rare else []


def _mark(evaluation: GeneratorEvaluation, *sources: str) -> str:
    """A mark where a figure depends on something that is in-sample."""
    return MARK if any(source in evaluation.in_sample for source in sources) else ""


def _titled(every: T, types: Mapping[str, T], labels: Mapping[str, T]) -> Iterator[tuple[str, T]]:
    yield "all", every
    for kind, one in types.items():
        yield f"{kind} ({PROMPT_TYPES[kind]})" if kind in PROMPT_TYPES else kind, one
    for key, one in labels.items():
        yield f"{HARM_LABELS[key].code} {key}", one


def _mean(figure: MeanFigure | None, form: str) -> str:
    if figure is None:
        return ""
    if figure.interval is None:
        return f"{figure.mean:{form}}"
    return f"{figure.mean:{form}} [{figure.interval[0]:{form}}, {figure.interval[1]:{form}}]"


def _rate(figure: RateFigure | None) -> str:
    if figure is None:
        return ""
    if figure.interval is None:
        return f"{figure.rate:.3f} (no interval)"
    return f"{figure.rate:.3f} [{figure.interval[0]:.3f}, {figure.interval[1]:.3f}]"


def _row(title: str, cells: Sequence[str]) -> str:
    counts, figures = cells[:2], cells[2:]
    line = f"{title:<28}" + "".join(f"{cell:>8}" for cell in counts) + "".join(f"  {cell:<23}" for cell in figures)
    return line.rstrip()
