"""A small part of the fuzz run; and that it finds what it is for."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

import pytest
from conftest import ROOT, launch
from pydantic import BeforeValidator
from typing_extensions import TypedDict

from safe_rlhf_video.contracts import OPEN
from safe_rlhf_video.data import records
from safe_rlhf_video.data.sources import archive, video_align

FULLY = pytest.param(["json", "csv", "tar"], 1000, marks=pytest.mark.slow)


@pytest.mark.parametrize(("kinds", "mutations"), [(["mp4"], 40), (["json", "csv", "tar"], 150), FULLY])
def test_mutated_files_are_refused_or_valid(tmp_path: Path, kinds: list[str], mutations: int) -> None:
    out = tmp_path / "fuzz.json"
    done = launch(
        *("benchmarks/fuzz.py", "--kinds", *kinds, "--mutations", mutations, "--seed", 7, "--out", out),
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads(out.read_text())["kinds"]
    assert list(results) == kinds
    for kind, result in results.items():
        assert result["rejected"] + result["valid"] == mutations, kind
        assert min(result["rejected"], result["valid"]) >= 3, f"{kind}: mutations that test nothing"
        assert not result["failures"]


@pytest.fixture(scope="module")
def fuzz() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz", ROOT / "benchmarks" / "fuzz.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def trusting_parts(member: object) -> list[str]:
    return member.name.split("/")  # type: ignore[attr-defined]


def trusting_path(written: str, *rest: object) -> str:
    return written


def careless_form(form: Any, **fields: Any) -> Any:
    """The form of a record with other types of some fields."""
    careless = TypedDict(form.__name__, form.__annotations__ | fields, total=False)  # type: ignore[misc]
    careless.__pydantic_config__ = OPEN  # type: ignore[attr-defined]
    return careless


# A label that is not one is silently taken for none.
CARELESS_CHOICE = Annotated[
    Any, BeforeValidator(lambda value: value if value in ("video_0", "video_1", "tie", None) else None)
]
# The released files' name of one sub-dimension is not known.
ONE_NAME = TypedDict("ONE_NAME", dict.fromkeys(records.SUB_DIMENSIONS, records.Choice), total=False)  # type: ignore[misc]


@pytest.mark.parametrize(
    ("kind", "module", "name", "careless"),
    [
        ("tar", archive, "_checked_parts", trusting_parts),
        ("json", records, "PairRecord", careless_form(records.PairRecord, helpfulness=CARELESS_CHOICE)),
        ("json", records, "PairRecord", careless_form(records.PairRecord, sub_preferences=ONE_NAME | None)),
        ("json", records, "VideoRecord", careless_form(records.VideoRecord, video_labels=Any)),
        ("json", records, "VideoRecord", careless_form(records.VideoRecord, video_path=str)),
        ("csv", video_align, "_relative_path", trusting_path),
    ],
)
def test_fuzz_finds_a_check_that_is_missing(
    fuzz: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    module: ModuleType,
    name: str,
    careless: Callable[..., object],
) -> None:
    monkeypatch.setattr(module, name, careless)
    result = fuzz.run(kind, 200, 0, tmp_path / "kept")
    assert result["failures"]
    assert len(list((tmp_path / "kept").iterdir())) == len(result["failures"])
