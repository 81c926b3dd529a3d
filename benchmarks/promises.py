"""Measures by simulation whether every interval, test and guarantee that the project prints is kept.

    OMP_NUM_THREADS=1 python benchmarks/promises.py --draws 10000 --out outputs/promises.json

It calls the project's own functions on drawn prompts, comparisons and clips, without models or videos, and prints a row
for each promise and setting, with its bound (`promise_rows`). Exit status 1 where a row misses its bound.
`promises_intervals` has the intervals and the test of two models, `promises_issued` the thresholds, multipliers and
temperatures.
"""

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from itertools import repeat
from pathlib import Path

import numpy as np
import promises_intervals
import promises_issued
from promise_rows import Row, format_rows

from safe_rlhf_video.cli import Parser, run_script
from safe_rlhf_video.files import write_whole

# The longest first.
PARTS = (*promises_issued.PARTS, *promises_intervals.PARTS)


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=10_000, help="of each row")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, metavar="FILE", help="all rows as JSON")
    arguments = parser.parse_args()
    started = time.monotonic()
    rows: list[Row] = []

    def keep(row: Row) -> Row:
        rows.append(row)
        return row

    for line in format_rows(map(keep, all_rows(arguments.draws, arguments.seed, arguments.processes))):
        print(line, flush=True)
    print("\n" + summarise(rows))
    missed = [row for row in rows if not row.ok]
    print(f"\n{len(rows)} rows, {len(missed)} miss their bound; {time.monotonic() - started:.0f} s")
    if arguments.out:
        write_whole(arguments.out, json.dumps([asdict(row) for row in rows], indent=2) + "\n")
    if missed:
        raise SystemExit(1)


def all_rows(draws: int, seed: int, processes: int) -> Iterator[Row]:
    """Every row, a part after the other. How many processes draw them does not change them."""
    with ProcessPoolExecutor(processes) as pool:
        for rows in pool.map(run_part, range(len(PARTS)), repeat(draws), repeat(seed)):
            yield from rows


def run_part(number: int, draws: int, seed: int) -> list[Row]:
    """The rows of one of `PARTS`."""
    return list(PARTS[number](draws, np.random.default_rng([seed, number])))


def summarise(rows: Sequence[Row]) -> str:
    """A Markdown table with a line a promise: its least and greatest rate over all settings."""
    lines = [
        "| promise | settings | nominal | least | greatest | widest / reference | missed |",
        "|---|---|---|---|---|---|---|",
    ]
    for promise in dict.fromkeys(row.promise for row in rows):
        of = [row for row in rows if row.promise == promise]
        measured, widths = [row.measured for row in of], [row.width for row in of if row.width is not None]
        widest = f"{max(widths):.2f}" if widths else ""
        missed = sum(not row.ok for row in of)
        cells = (promise, str(len(of)), f"{of[0].nominal:g}", f"{min(measured):.3f}", f"{max(measured):.3f}", widest,
                 str(missed))  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    run_script(main)
