"""Contracts: a wrong field is one line that names file, field, what was expected and what was found."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field
from typing_extensions import TypedDict

from safe_rlhf_video.contracts import OPEN, STRICT, Expected, check_fields, parse_json, read_json, to_fields, write_json
from safe_rlhf_video.errors import CheckpointError, SampleError


@dataclass(frozen=True)
class Spread:
    """A nested contract."""

    __pydantic_config__ = STRICT

    std: Annotated[float, Field(gt=0)]
    levels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Scale:
    """A contract of every kind of field."""

    __pydantic_config__ = STRICT

    version: int
    heads: dict[str, Spread]
    kind: Literal["hard", "soft"] = "hard"
    side: Annotated[bool | None, Expected("yes, no or null")] = None

    def __post_init__(self) -> None:
        if self.version == 7:
            raise ValueError("version 7 was never published")


class OpenRow(TypedDict, total=False):
    """A contract of other people's files."""

    __pydantic_config__ = OPEN  # type: ignore[misc]

    text: str


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"version": 1.5, "heads": {}}', " field version: expected a whole number, got 1.5"),
        ('{"version": 1, "heads": {"r": {"std": -1}}}', " field heads.r.std: expected a number greater than 0, got -1"),
        ('{"version": 1, "heads": {"r": {"std": NaN}}}', " field heads.r.std: expected a finite number, got nan"),
        (
            '{"version": 1, "heads": {"r": {"std": 1, "levels": ["a", 2]}}}',
            " field heads.r.levels[1]: expected a string",
        ),
        ('{"version": 1, "heads": {"r": 3}}', " field heads.r: expected an object, got 3"),
        ('{"version": 1, "heads": {}, "kind": "odd"}', " field kind: expected 'hard' or 'soft', got 'odd'"),
        ('{"version": 1, "heads": {}, "side": "up"}', " field side: expected yes, no or null, got 'up'"),
        ('{"version": 1, "heads": {}, "x": 1}', " field x: unknown"),
        ('{"heads": {}}', " field version: missing"),
        ('{"version": 7, "heads": {}}', ": version 7 was never published"),
        ('{"version": ', ": not valid JSON (EOF"),
        ("[1]", ": expected an object, got [1]"),
    ],
)
def test_a_wrong_document_is_one_line(text: str, message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        parse_json(Scale, text, "scale.json", CheckpointError, "fit it again")
    assert str(caught.value).startswith(f"scale.json{message}")
    assert str(caught.value).endswith("; fit it again")
    assert "\n" not in str(caught.value)


def test_a_contract_is_written_and_read_back(tmp_path: Path) -> None:
    scale = Scale(1, {"reward": Spread(0.1 + 0.2, ("a",))}, side=True)
    write_json(tmp_path / "scale.json", scale)
    assert read_json(Scale, tmp_path / "scale.json", CheckpointError, "fit it again") == scale
    assert to_fields(scale)["heads"] == {"reward": {"std": 0.1 + 0.2, "levels": ["a"]}}
    with pytest.raises(CheckpointError, match=r"other\.json: no such file or folder; fit it again"):
        read_json(Scale, tmp_path / "other.json", CheckpointError, "fit it again")


def test_an_open_contract_ignores_what_it_does_not_know() -> None:
    row: dict[Any, Any] = {"text": "a", "\ud800": 10**4000}
    assert check_fields(OpenRow, row, "row 3", SampleError) == {"text": "a"}
    with pytest.raises(SampleError, match="row 3 field text: expected a string, got 5"):
        check_fields(OpenRow, {"text": 5}, "row 3", SampleError)
