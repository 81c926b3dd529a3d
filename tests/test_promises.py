"""The simulation of promises: what a row passes, and a small version of the whole."""

import pytest
from conftest import ROOT


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")


def test_a_row_is_held_to_its_bound() -> None:
    from promise_rows import coverage_row, error_row, format_rows

    held = [coverage_row("share", "10 prompts", covered, 10_000, width) for covered, width in (
        (9300, 9.0), (9700, 9.0), (9990, 1.2), (9200, 1.0), (9990, 1.5))]  # fmt: skip
    assert [row.ok for row in held] == [True, True, True, False, False]
    assert [error_row("test", "", wrong, 10_000, 0.05, 0.06).ok for wrong in (500, 600, 700)] == [True, True, False]
    assert [line.rsplit("|", 2)[1].strip() for line in list(format_rows(held))[2:]] == [
        "ok", "ok", "ok", "FAILS", "FAILS"]  # fmt: skip


def test_no_promise_is_broken_in_a_small_simulation() -> None:
    from promises import PARTS, run_part, summarise
    from promises_issued import PARTS as SLOW

    rows = [row for number in range(len(SLOW), len(PARTS)) for row in run_part(number, draws=10, seed=0)]
    assert len({row.promise for row in rows}) > 10
    # Of ten draws only gross failures show.
    coverages, errors = ([row for row in rows if (row.width is not None) == has] for has in (True, False))
    assert min(row.measured for row in coverages) > 0.5
    assert max(row.measured for row in errors) < 0.5
    table = summarise(rows)
    assert all(row.promise in table for row in rows)
