"""Defines a row of benchmarks/promises.py: how often one promise is kept in one setting, and whether that is enough."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

# A rate over a finite number of draws may miss its bound by this many standard errors.
STANDARD_ERRORS = 2
LEAST_COVERAGE, MOST_COVERAGE = 0.93, 0.97
MOST_WIDTH = 1.3  # of the reference's width, where an interval covers more than MOST_COVERAGE
MOST_TYPE_I = 0.06


@dataclass(frozen=True)
class Row:
    """One promise in one setting.

    Attributes:
        promise: what is promised, such as "accuracy: 95% interval".
        setting: prompts, sizes and truth of the draws, such as "10 prompts, skewed, accuracy .95".
        nominal: the rate that is promised: a coverage, or a rate of errors.
        measured: the rate over all draws.
        error: its Monte-Carlo standard error.
        width: mean width of the interval over that of the reference; None where there is none.
        bound: in words, what `measured` (and `width`) must keep.
        ok: whether they do, within `STANDARD_ERRORS`.
    """

    promise: str
    setting: str
    nominal: float
    measured: float
    error: float
    width: float | None
    bound: str
    ok: bool


def coverage_row(promise: str, setting: str, covered: int, draws: int, width: float) -> Row:
    """A row of a 95% interval.

    Args:
        covered: draws whose interval holds the true value.
        width: mean width over the mean width of the reference.
    """
    measured, error = _rate(covered, draws)
    is_enough = measured >= LEAST_COVERAGE - STANDARD_ERRORS * error
    is_narrow = measured <= MOST_COVERAGE + STANDARD_ERRORS * error or width <= MOST_WIDTH
    bound = f"{LEAST_COVERAGE:.0%}-{MOST_COVERAGE:.0%}, or width <= {MOST_WIDTH}"
    return Row(promise, setting, 0.95, measured, error, float(width), bound, bool(is_enough and is_narrow))


def error_row(promise: str, setting: str, wrong: int, draws: int, nominal: float, most: float) -> Row:
    """A row of an error that may happen in at most a share `most` of the draws: type I, or something wrongly issued."""
    measured, error = _rate(wrong, draws)
    is_ok = measured <= most + STANDARD_ERRORS * error
    return Row(promise, setting, nominal, measured, error, None, f"at most {most:.0%}", bool(is_ok))


def format_rows(rows: Iterable[Row]) -> Iterator[str]:
    """The lines of a Markdown table, each as soon as its row is there."""
    yield "| promise | setting | nominal | measured | Monte-Carlo error | width / reference | bound | |"
    yield "|---|---|---|---|---|---|---|---|"
    for row in rows:
        width = "" if row.width is None else f"{row.width:.2f}"
        cells = (
            row.promise, row.setting, f"{row.nominal:.3f}", f"{row.measured:.4f}", f"{row.error:.4f}", width, row.bound,
            "ok" if row.ok else "FAILS",
        )  # fmt: skip
        yield f"| {' | '.join(cells)} |"


def _rate(count: int, draws: int) -> tuple[float, float]:
    """The rate and its standard error; that of one event in all draws at least, so that 0 of 10 is not certain."""
    rate = count / draws
    spread = min(max(rate, 1 / draws), 1 - 1 / draws) if draws > 1 else 0.5
    return rate, math.sqrt(spread * (1 - spread) / draws)
