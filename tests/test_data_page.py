"""Holds docs/data.md to the code: its examples load, it names every field of every file, and errors point to it."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import typing_extensions
from conftest import ROOT

from safe_rlhf_video.audit.sections import Audit, CountedShare
from safe_rlhf_video.calibration.store import CalibrationFile
from safe_rlhf_video.data import records
from safe_rlhf_video.data.datasets import PairDataset, PromptDataset, VideoDataset, load_any
from safe_rlhf_video.data.record_fields import PAGE
from safe_rlhf_video.data.sources.pku_saferlhf import RowFields, convert_rows, read_rows
from safe_rlhf_video.data.sources.video_align import convert_csv
from safe_rlhf_video.errors import SampleError
from safe_rlhf_video.evaluation.generator_results import GeneratorEvaluation
from safe_rlhf_video.evaluation.judgements import Judgements
from safe_rlhf_video.evaluation.results import Evaluation
from safe_rlhf_video.kinds.ordinal import OrdinalFigures
from safe_rlhf_video.models.record import _ModelFile
from safe_rlhf_video.pages.dashboard_spec import SECTIONS
from safe_rlhf_video.scoring.decisions import PairScore, Ranking
from safe_rlhf_video.scoring.harms import Moderation
from safe_rlhf_video.scoring.input_rows import FORMS
from safe_rlhf_video.scoring.input_rows import read_rows as read_rows_to_score
from safe_rlhf_video.training.state import TrainerState
from safe_rlhf_video.video.codec import Codec
from safe_rlhf_video.video.frame_store import QuarantinedClip, StoredClip

TEXT = (ROOT / PAGE).read_text()
EXAMPLES = dict(re.findall(r"`([\w.]+)`:\n\n```\w+\n(.*?)```", TEXT, re.DOTALL))


def load_csv(path: Path) -> Any:
    found, findings = convert_csv(path, path.parent)
    assert set(findings) == {"a tie in aesthetics", "no label of instruction_following"}
    return found


def load_rows(path: Path) -> Any:
    rows, bad = read_rows_to_score(path)
    assert not bad
    return rows


READERS: dict[str, tuple[Callable[[Path], Any], int]] = {
    "comparisons.json": (PairDataset.load, 1),
    "videos.json": (VideoDataset.load, 1),
    "prompts.json": (PromptDataset.load, 2),
    "texts.json": (PairDataset.load, 1),
    "saferlhf.jsonl": (lambda path: convert_rows(read_rows(path))[0], 2),
    "videoalign.csv": (load_csv, 2),
    "pairs.jsonl": (load_rows, 2),
    "lists.jsonl": (load_rows, 1),
    "clips.jsonl": (load_rows, 1),
}


def test_every_example_has_a_reader() -> None:
    assert EXAMPLES.keys() == READERS.keys()


@pytest.mark.parametrize("name", READERS)
def test_examples_load(name: str, tmp_path: Path) -> None:
    read, number = READERS[name]
    path = tmp_path / name
    path.write_text(EXAMPLES[name])
    loaded = read(path)
    assert len(loaded) == number
    if isinstance(loaded, PairDataset | VideoDataset | PromptDataset):
        assert type(load_any(path)) is type(loaded)
        assert not [sample.extra for sample in getattr(loaded, f"{loaded.kind}s") if sample.extra]


def section(title: str) -> str:
    """The text below a heading, up to the next one of its level or above."""
    found = re.search(rf"^(#+) {re.escape(title)}\n(.*?)(?=^#{{1,3}} |\Z)", TEXT, re.DOTALL | re.MULTILINE)
    assert found is not None, title
    return found[2]


def field_names(kind: Any, seen: set[Any]) -> Iterator[str]:
    """Names of the fields of a dataclass or TypedDict, and of those within."""
    if kind in seen:
        return
    seen.add(kind)
    if dataclasses.is_dataclass(kind) or typing_extensions.is_typeddict(kind):
        for name, hint in typing.get_type_hints(kind).items():
            if not name.startswith("_"):
                yield name
                yield from field_names(hint, seen)
    for inner in typing.get_args(kind):
        yield from field_names(inner, seen)


FIELDS: dict[str, Sequence[Any]] = {
    "Comparisons": (records.PairRecord, {*records.VideoRecord.__annotations__} - {"response_text", "severity_level"}),
    "Harm labels": (records.HarmLabelFields,),
    "Videos": (records.PromptFields,),
    "Prompts": (records.PromptFields, {"prompt_labels"}),
    "Texts": ({*records.ResponseRecord.__annotations__} - {*records.GeneratedFields.__annotations__},),
    "PKU-SafeRLHF": (RowFields,),
    "Rows to score": tuple(form.fields for form in FORMS.values()),
    "Scores": (PairScore, Ranking, Moderation, {"row", "harms"}),
    "evaluation.json": (Evaluation, OrdinalFigures, {*records.ALL_DIMENSIONS}),
    "judgements.json": (Judgements,),
    "generator.json": (GeneratorEvaluation,),
    "audit.json": (Audit, CountedShare),
    "calibration.json": (CalibrationFile,),
    "Run folder": (TrainerState,),
    "Model folder": (_ModelFile, {"path"}),
    "Frame store": (StoredClip, QuarantinedClip, Codec, {"format_version", "sampling", "codec", "checksum"}),
}
WRITTEN = [*FIELDS][[*FIELDS].index("evaluation.json") :]
IN_THE_FILE = {"dimensions": records.ALL_DIMENSIONS, "graded": ("severity",)}  # stand there under these names


@pytest.mark.parametrize("title", FIELDS)
def test_every_field_is_named(title: str) -> None:
    named = set(re.findall(r"`(\w+)`", section(title)))
    seen: set[Any] = set()
    wanted = {
        name
        for kind in FIELDS[title]
        for one in ([*kind] if isinstance(kind, set) else [*field_names(kind, seen)])
        for name in IN_THE_FILE.get(one, (one,))
    }
    if title == "Rows to score":
        wanted |= {form.id_field for form in FORMS.values()}
    missing = wanted - named - ({"prompt_labels", "video_labels"} if title == "Texts" else set())
    assert not missing, f"{PAGE}, {title}: name and explain {', '.join(sorted(missing))}"
    if title in WRITTEN:
        first_cells = re.findall(r"^\| (`[^|]*`) \|", section(title), re.MULTILINE)
        gone = {name for cell in first_cells for name in re.findall(r"`(\w+)`", cell)} - wanted
        assert not gone, f"{PAGE}, {title}: no file has {', '.join(sorted(gone))}"


def test_every_metric_is_named() -> None:
    shown = [panel for part in SECTIONS for panel in part.panels if panel.kind == "line"]
    for name in (name for panel in shown for name in panel.metrics):
        pattern = re.escape(name) + "(/<head>|/cost)?"
        assert re.search(f"`{pattern}`", section("Run folder")), name


def test_harm_labels_are_those_of_the_table() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (S\d+) \| (.+) \|$", section("Harm labels"), re.MULTILINE)
    assert rows == [(key, head.code, head.published) for key, head in records.HARM_LABELS.items()]
    assert all(f"`{name}`" in section("Texts").replace("\n", " ") for name in records.HARM_CATEGORIES)


def anchors() -> set[str]:
    titles = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def test_links_within_the_page_lead_somewhere() -> None:
    assert {*re.findall(r"\]\(#([\w-]+)\)", TEXT)} <= anchors()


WRONG = {
    "comparisons.json": ('"helpfulness": "video_0"', '"helpfulness": "A"', "comparisons"),
    "videos.json": ('"porn": false', '"porn": 0', "videos"),
    "prompts.json": ('"p2"', '"p1"', "prompts"),
    "texts.json": ('"severity_level": 2', '"severity_level": 4', "comparisons"),
    "saferlhf.jsonl": ('"better_response_id": 1', '"better_response_id": 2', "pku-saferlhf"),
    "videoalign.csv": ("A,A,same,B", "A,A,equal,B", "videoalign"),
    "pairs.jsonl": ('"kite_1.mp4"', "5", "rows-to-score"),
}


@pytest.mark.parametrize("name", WRONG)
def test_an_error_about_a_field_ends_with_its_section(name: str, tmp_path: Path) -> None:
    right, wrong, anchor = WRONG[name]
    path = tmp_path / name
    path.write_text(EXAMPLES[name].replace(right, wrong, 1))
    assert anchor in anchors()
    if name == "pairs.jsonl":
        message = str(read_rows_to_score(path)[1][0].error)
    else:
        with pytest.raises(SampleError) as raised:
            READERS[name][0](path)
        message = str(raised.value)
    assert message.endswith(f"; see {PAGE}#{anchor}")
    assert len(message.replace(str(tmp_path), "")) < 160
