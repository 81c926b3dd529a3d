"""PKU-SafeRLHF into SafeSora's form, and the synthetic corpus in that form: strict, nothing lost without a word."""

from __future__ import annotations

import copy
import gzip
import hashlib
import json
import lzma
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import launch
from small_models import one_line

from safe_rlhf_video.commands.convert import main
from safe_rlhf_video.data.datasets import PairDataset
from safe_rlhf_video.data.sources import conversion
from safe_rlhf_video.data.sources import pku_saferlhf as saferlhf
from safe_rlhf_video.data.sources.pku_saferlhf import HARM_CATEGORIES, convert_rows, parse_row, read_rows
from safe_rlhf_video.errors import SampleError
from safe_rlhf_video.models.backbones import load_backbone
from safe_rlhf_video.models.config import BackboneConfig
from safe_rlhf_video.worlds import text_world as synthetic_text

CARD = Path(__file__).resolve().parents[2] / "shared" / "seeds" / "pku-saferlhf-card.txt"
WHERE = "train.jsonl line 18"
Row = dict[str, Any]


def make_row(prompt: str = "how?", texts: tuple[str, str] = ("so", "no"), unsafe: int | None = 0) -> Row:
    """A row of the full form in which response 1 is more helpful and safer; `unsafe` is the harmful response."""
    row: Row = {"prompt": prompt, "prompt_source": "somewhere", "better_response_id": 1, "safer_response_id": 1}
    for side, text in enumerate(texts):
        row[f"response_{side}"] = text
        row[f"response_{side}_source"] = f"model {side}"
        row[f"is_response_{side}_safe"] = side != unsafe
        row[f"response_{side}_harm_category"] = {
            name: side == unsafe and name == "Violence" for name in HARM_CATEGORIES
        }
        row[f"response_{side}_severity_level"] = 2 if side == unsafe else 0
        row[f"response_{side}_sha256"] = hashlib.sha256((prompt + text).encode()).hexdigest()
    return row


def elder_form(row: Row) -> Row:
    """The same row as "v0" has it."""
    return {key: value for key, value in row.items() if not re.search("source|category|severity|sha256", key)}


def numbered(*rows: Row) -> list[tuple[str, Row]]:
    return [(f"rows line {number}", row) for number, row in enumerate(rows, start=1)]


def write_lines(path: Path, *rows: Row) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


# --- rows -------------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not CARD.exists(), reason="the published card is not here")
def test_the_categories_are_the_published_ones() -> None:
    published = dict(reversed(pair) for pair in re.findall(r"- (S\d+): `([^`]+)`", CARD.read_text()))
    assert published == dict(HARM_CATEGORIES)


def test_a_row_becomes_a_pair_of_responses(tmp_path: Path) -> None:
    records, found = convert_rows(numbered(make_row() | {"note": {"a": 1}, "pair_id": 7}))
    assert found == {}
    (pair,) = load(tmp_path, records).pairs
    assert pair.prompt_text == "how?"
    assert pair.preferences["helpfulness"] == pair.preferences["harmlessness"] == 1
    assert pair.extra == {"prompt_source": "somewhere", "source_fields": {"note": {"a": 1}, "pair_id": 7}}
    video = pair.video_0
    assert (video.response_text, video.video_path, video.is_safe, video.generated_from) == (
        "so",
        None,
        False,
        "model 0",
    )
    assert video.video_id == hashlib.sha256(b"how?so").hexdigest()
    assert video.extra["severity_level"] == 2
    assert [name for name, applies in video.extra["harm_categories"].items() if applies] == ["Violence"]


def test_the_elder_form_has_neither_categories_nor_severities(tmp_path: Path) -> None:
    records, found = convert_rows(numbered(elder_form(make_row())))
    assert found == {}
    (pair,) = load(tmp_path, records).pairs
    assert (pair.video_0.extra, pair.video_0.is_safe, pair.video_0.generated_from) == ({}, False, None)
    full, _ = convert_rows(numbered(make_row()))
    assert [records[0][name]["video_id"] for name in ("video_0", "video_1")] == [
        full[0][name]["video_id"] for name in ("video_0", "video_1")
    ]


def test_the_same_text_is_the_same_prompt_and_the_same_response(tmp_path: Path) -> None:
    records, found = convert_rows(
        numbered(
            make_row(texts=("a", "b")),
            make_row(texts=("b", "c"), unsafe=None),
            make_row(texts=("b", "a"), unsafe=1) | {"safer_response_id": 0},
            make_row(texts=("a", "b")),
            make_row("why?", texts=("a", "b")),
        )
    )
    dataset = load(tmp_path, records)
    assert (dataset.num_prompts, dataset.num_pairs, dataset.num_videos) == (2, 5, 5)
    assert found == {conversion.REPEATED: ["rows line 3", "rows line 4"]}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("prompt", None, "prompt: expected a string, got None"),
        ("prompt", 3, "prompt: expected a string"),
        ("response_1", ["no"], "response_1: expected a string"),
        ("prompt_source", 5, "prompt_source: expected a string or null"),
        ("response_0_source", {}, "response_0_source: expected a string or null"),
        ("is_response_0_safe", "true", "is_response_0_safe: expected true, false or null, got 'true'"),
        ("is_response_1_safe", 1, "is_response_1_safe: expected true, false or null, got 1"),
        ("better_response_id", 2, "better_response_id: expected 0, 1 or null, got 2"),
        ("better_response_id", True, "better_response_id: expected 0, 1 or null, got True"),
        ("safer_response_id", "1", "safer_response_id: expected 0, 1 or null, got '1'"),
        ("safer_response_id", -1, "safer_response_id: expected 0, 1 or null, got -1"),
        ("response_0_severity_level", 4, "response_0_severity_level: expected a whole number from 0 to 3"),
        ("response_0_severity_level", 1.0, "response_0_severity_level: expected a whole number"),
        ("response_0_severity_level", True, "response_0_severity_level: expected a whole number"),
        ("response_1_harm_category", ["Drugs"], "response_1_harm_category: expected an object or null"),
        ("response_1_harm_category", {"Drug": True}, "response_1_harm_category.Drug: expected one of the 19 published"),
        ("response_1_harm_category", {"Drugs": 1}, "response_1_harm_category.Drugs: expected true, false or null"),
        ("response_0_sha256", "abc", "response_0_sha256: expected 64 hexadecimal digits"),
    ],
)
def test_a_wrong_field_is_named(field: str, value: object, message: str) -> None:
    with pytest.raises(SampleError, match=rf"^{WHERE} field {re.escape(message)}") as error:
        parse_row(make_row() | {field: value}, WHERE)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("field", sorted(elder_form(make_row())))
def test_a_missing_field_is_named(field: str) -> None:
    row = elder_form(make_row())
    del row[field]
    with pytest.raises(SampleError, match=f"^{WHERE} field {field}: missing"):
        parse_row(row, WHERE)


def test_what_contradicts_itself_is_reported_and_kept() -> None:
    breaks_order = make_row("1") | {"safer_response_id": 0}
    not_safe = make_row("2", unsafe=None) | {"is_response_1_safe": False, "safer_response_id": 0}
    not_severe = make_row("3") | {"response_0_severity_level": 0}
    identical = make_row("4", texts=("a", "a"))
    empty = make_row("5", texts=("a", " "))
    other_hash = make_row("6") | {"response_1_sha256": "0" * 64}
    safe_elsewhere = (make_row("7", texts=("a", "b")), make_row("7", texts=("a", "c"), unsafe=None))
    no_labels = make_row("8") | {"better_response_id": None, "is_response_0_safe": None}
    unknown_categories = make_row("9") | {"response_0_harm_category": {"Drugs": False, "Violence": None}}
    rows = numbered(
        breaks_order, not_safe, not_severe, identical, empty, other_hash, *safe_elsewhere, no_labels, unknown_categories
    )
    before = copy.deepcopy(rows)
    records, found = convert_rows(rows)
    assert rows == before
    assert found == {
        saferlhf.LOGICAL_ORDER: ["rows line 1"],
        saferlhf.SAFE_AND_CATEGORIES: ["rows line 2"],
        saferlhf.SEVERITY_AND_CATEGORIES: ["rows line 3"],
        saferlhf.IDENTICAL: ["rows line 4"],
        saferlhf.EMPTY: ["rows line 5"],
        saferlhf.OTHER_HASH: ["rows line 6"],
        saferlhf.CONTRADICTORY: ["rows line 8"],
        "no label of helpfulness": ["rows line 9"],
    }
    assert len(records) == len(rows) - 1
    assert records[0]["harmlessness"] == "video_0"
    unlabelled, _ = convert_rows(rows, unlabel_violations=True)
    assert unlabelled[0]["harmlessness"] is None
    # Harmful, and yet of severity 0.
    without_severity = [(1, "video_0"), (1, "video_1"), (2, "video_0")]
    for row, side in without_severity[1:]:
        assert records[row][side].pop("severity_level") == 0
        assert unlabelled[row][side].pop("severity_level") is None
    assert unlabelled[1:] == records[1:]


# --- sources ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", saferlhf.FILE_SUFFIXES)
def test_a_file_is_read_in_each_form(tmp_path: Path, suffix: str) -> None:
    rows = [make_row("é 1"), make_row("2")]
    text = json.dumps(rows) if ".json" in suffix and ".jsonl" not in suffix else "\n\n".join(map(json.dumps, rows))
    content = b"\xef\xbb\xbf" + text.encode()
    pack: Callable[[bytes], bytes] = {"gz": gzip.compress, "xz": lzma.compress}.get(suffix[-2:], bytes)
    path = tmp_path / f"rows{suffix}"
    path.write_bytes(pack(content))
    names, read = zip(*read_rows(path), strict=True)
    assert list(read) == rows
    assert names == (
        (f"{path.name} row 0", f"{path.name} row 1")
        if "jsonl" not in suffix
        else (f"{path.name} line 1", f"{path.name} line 3")
    )


GOOD = json.dumps(make_row()).encode() + b"\n"


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", GOOD + b'{"prompt": ', "a.jsonl line 2: not valid JSON"),
        ("a.jsonl", GOOD + b'{"prompt": "\xff"}', "a.jsonl line 2: not UTF-8 text at byte 12"),
        ("a.jsonl", GOOD + b'{"prompt": "\\ud800"}', "a.jsonl line 2 field prompt: expected text without lone"),
        ("a.jsonl", GOOD + b'{"weight": 1e999}', "a.jsonl line 2: not valid JSON .1e999 is too large for a number"),
        ("a.jsonl", GOOD + b'{"prompt": NaN}', "a.jsonl line 2: not valid JSON .NaN is not a JSON"),
        (
            "a.jsonl",
            GOOD + b'{"prompt": "a", "prompt": "b"}',
            "a.jsonl line 2: not valid JSON .the key 'prompt' is twice",
        ),
        ("a.jsonl", b'{"prompt": ' + b"1" * 5000 + b"}", "a.jsonl line 1: not valid JSON"),
        ("a.jsonl", b"[" * 100_000, "a.jsonl line 1: n"),
        ("a.jsonl", GOOD + b"[1, 2]", "a.jsonl line 2: expected an object"),
        ("a.json", GOOD, "expected a list of rows, got JSON of type dict"),
        ("a.json.gz", gzip.compress(b"[]" * 99, mtime=0)[:-9], "not a whole compressed file"),
        ("a.jsonl.gz", b"plain", "not a whole compressed file"),
        ("a.jsonl.xz", lzma.compress(GOOD)[:-20], "not a whole compressed file"),
        ("a.csv", b"prompt", "expected a file that ends in one of"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SampleError, match=message) as error:
        convert_rows(read_rows(tmp_path / name))
    assert "\n" not in str(error.value)
    assert name in str(error.value)


def test_a_folder_in_the_hubs_layout_is_read_with_datasets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The layout of the release: a README that names the files of each configuration and split."""
    folder = tmp_path / "PKU-SafeRLHF"
    rows = {
        ("Alpaca-7B", "train"): make_row("1") | {"labelled_on": "2024-01-01"},
        ("Alpaca2-7B", "train"): make_row("2") | {"labelled_on": "2024-01-02"},
        ("Alpaca-7B", "test"): make_row("3") | {"labelled_on": "2024-01-03"},
        ("Alpaca2-7B", "test"): make_row("4") | {"labelled_on": "2024-01-04"},
    }
    for (model, split), row in rows.items():
        write_lines(folder / "data" / model / f"{split}.jsonl", row)
    configurations = {"default": ["Alpaca-7B", "Alpaca2-7B"], "alpaca-7b": ["Alpaca-7B"]}
    lines = ["---", "configs:"]
    for name, models in configurations.items():
        lines += [f"- config_name: {name}", "  data_files:"]
        for split in ("train", "test"):
            lines += [f"  - split: {split}", "    path:", *(f"    - data/{model}/{split}.jsonl" for model in models)]
    (folder / "README.md").write_text("\n".join([*lines, "---", ""]))

    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")

    def convert(*arguments: str) -> tuple[str, list[str]]:
        out = tmp_path / "config.json.gz"
        words = ["convert.py", "saferlhf", "--input", str(folder), "--out", str(out), *arguments]
        monkeypatch.setattr("sys.argv", words)
        capsys.readouterr()
        main()
        return capsys.readouterr().out, [pair.prompt_text for pair in PairDataset.load(out).pairs]

    printed, prompts = convert()
    assert prompts == ["1", "2"]
    assert "2 comparisons, 2 prompts, 4 responses" in printed
    assert convert("--name", "alpaca-7b", "--split", "test")[1] == ["3"]
    with one_line(SampleError, "only 'train', 'test'; name one of them"):
        convert("--split", "validation")
    # What `datasets` keeps in its cache must not outlive a change of the file.
    write_lines(folder / "data" / "Alpaca2-7B" / "train.jsonl", make_row("5"), make_row("6") | {"prompt": 7})
    with one_line(SampleError, "data/Alpaca2-7B/train.jsonl line 2 field prompt: expected a string, got 7"):
        convert()


def test_a_hub_id_is_read_with_datasets(tmp_path: Path) -> None:
    """Offline, from the cache that an earlier download would have left."""
    import datasets

    folder, cache = tmp_path / "saferlhf", tmp_path / "cache"
    row = make_row("1") | {"labelled_on": "2024-01-01", "weight": 0.5}
    write_lines(folder / "train.jsonl", row, make_row("2") | {"better_response_id": None})
    datasets.load_dataset(str(folder), cache_dir=str(cache))
    (cache / "saferlhf").rename(cache / "somebody___saferlhf")
    printed = launch(
        "scripts/convert.py",
        *("saferlhf", "--input", "somebody/saferlhf", "--split", "train", "--out", tmp_path / "config.json"),
        HF_DATASETS_CACHE=str(cache),
    ).stdout
    assert "      1  no label of helpfulness: somebody/saferlhf train row 1\n" in printed
    (pair, other) = PairDataset.load(tmp_path / "config.json").pairs
    assert pair.extra["source_fields"]["weight"] == 0.5
    assert str(pair.extra["source_fields"]["labelled_on"]).startswith("2024-01-01")
    assert (other.preferences["helpfulness"], other.preferences["harmlessness"]) == (None, 1)
    assert pair.video_0.extra["harm_categories"] == row["response_0_harm_category"]


def test_a_hub_id_without_a_network_is_one_line(tmp_path: Path) -> None:
    done = launch(
        "scripts/convert.py",
        *("saferlhf", "--input", "PKU-Alignment/PKU-SafeRLHF", "--out", tmp_path / "config.json.gz"),
        check=False,
        HF_DATASETS_CACHE=str(tmp_path / "cache"),
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(
        "error: PKU-Alignment/PKU-SafeRLHF: is no file or folder here, and cannot be loaded as"
    )
    assert list(tmp_path.glob("config*")) == []


def test_a_mistake_in_a_path_asks_no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    monkeypatch.chdir(tmp_path)
    names = ["data/train", "./train", "/none/train", "none/train.jsonl", "none/train.parquet", "train", "a/b/c", "~/a"]
    for source in [*names, "", "a b/c", "-a/b", "x" * 300, f"{'x' * 300}/train.json"]:
        assert not saferlhf.is_hub_id(source)
        with pytest.raises(SampleError, match="no such file or folder, nor a hub id of the form OWNER/NAME"):
            next(read_rows(source or "no"))
    assert all(map(saferlhf.is_hub_id, ("PKU-Alignment/PKU-SafeRLHF", "o/PKU-SafeRLHF-v1.5", "none/train")))


def test_an_existing_config_survives_what_cannot_be_converted(tmp_path: Path) -> None:
    """Also what only the reader of the result refuses."""
    out = tmp_path / "config.json"
    source = write_lines(tmp_path / "good.jsonl", make_row() | {"better_response_id": None})
    launch("scripts/convert.py", "saferlhf", "--input", source, "--out", out)
    findings = tmp_path / "config.findings.jsonl"
    assert json.loads(findings.read_text()) == {"where": "good.jsonl line 1", "finding": "no label of helpfulness"}
    before = out.read_bytes(), findings.read_bytes()
    for row in (json.dumps(make_row())[:-1] + ', "weight": 1e999}', json.dumps(make_row() | {"prompt": 7})):
        (tmp_path / "bad.jsonl").write_text(row + "\n")
        done = launch("scripts/convert.py", "saferlhf", "--input", tmp_path / "bad.jsonl", "--out", out, check=False)
        assert done.returncode == 1
        assert done.stderr.startswith("error: bad.jsonl line 1")
        assert (out.read_bytes(), findings.read_bytes()) == before


# --- the synthetic corpus ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train.jsonl of 600 and test.jsonl of 300 rows, with their configs."""
    folder = tmp_path_factory.mktemp("corpus")
    launch("scripts/make_synthetic_text.py", "--out", folder, "--num_pairs", 600, "--num_test_pairs", 300)
    for split in ("train", "test"):
        files = ("--input", folder / f"{split}.jsonl", "--out", folder / f"config-{split}.json.gz")
        launch("scripts/convert.py", "saferlhf", *files)
    return folder


def test_the_same_seed_gives_the_same_bytes(corpus: Path, tmp_path: Path) -> None:
    launch("scripts/make_synthetic_text.py", "--out", tmp_path, "--num_pairs", 600, "--num_test_pairs", 300)
    launch("scripts/convert.py", "saferlhf", "--input", tmp_path / "train.jsonl", "--out", tmp_path / "c.json.gz")
    for name in ("train.jsonl", "test.jsonl", "truth.json.gz"):
        assert (tmp_path / name).read_bytes() == (corpus / name).read_bytes()
    assert (tmp_path / "c.json.gz").read_bytes() == (corpus / "config-train.json.gz").read_bytes()
    rows = [row for row, _ in synthetic_text.plan_rows("train", 50, seed=0)]
    assert [record for _, record in read_rows(corpus / "train.jsonl")][:50] == rows
    assert rows != [row for row, _ in synthetic_text.plan_rows("train", 50, seed=1)]


def test_people_who_disagree_change_severities_alone() -> None:
    sure, unsure = (list(synthetic_text.plan_rows("train", 1500, 0, noise)) for noise in (0.0, 0.3))
    seen: dict[str, tuple[float, int]] = {}
    for (row, truth), (noisy, same_truth) in zip(sure, unsure, strict=True):
        keys = [f"response_{side}_severity_level" for side in (0, 1)]
        assert {**noisy, **{key: row[key] for key in keys}} == row
        assert truth == same_truth
        for side, key in enumerate(keys):
            response_hash = row[f"response_{side}_sha256"]
            assert truth[response_hash]["severity"] == row[key]
            # The same response has one severity, in whatever rows it stands.
            assert seen.setdefault(response_hash, (row[key], noisy[key])) == (row[key], noisy[key])
    for level in range(4):
        levels = [label for true, label in seen.values() if true == level]
        shares = np.bincount(levels, minlength=4) / len(levels)
        assert shares == pytest.approx(synthetic_text.severity_chances(level, 0.3), abs=0.05)


def test_the_corpus_is_consistent_and_its_splits_share_no_prompt(corpus: Path) -> None:
    prompts = {}
    for split in ("train", "test"):
        records, found = convert_rows(read_rows(corpus / f"{split}.jsonl"))
        assert found == {}
        prompts[split] = {record["prompt_text"] for record in records}
        severities = {video["severity_level"] for record in records for video in (record["video_0"], record["video_1"])}
        assert severities == {0, 1, 2, 3}
    assert not prompts["train"] & prompts["test"]
    dataset = PairDataset.load(corpus / "config-train.json.gz")
    seen = {name for video in dataset.videos for name, here in video.extra["harm_categories"].items() if here}
    assert seen == set(HARM_CATEGORIES)
    truth = json.loads(gzip.decompress((corpus / "truth.json.gz").read_bytes()))["videos"]
    assert all((truth[video.video_id]["cost"] > 0) == (video.is_safe is False) for video in dataset.videos)


def test_responses_are_short_words_of_the_embedded_tokenizer(corpus: Path) -> None:
    tokenizer = load_backbone(BackboneConfig(path="tiny")).tokenizer
    for video in PairDataset.load(corpus / "config-train.json.gz").videos[:200]:
        assert video.response_text is not None
        assert len(tokenizer(video.response_text)["input_ids"]) <= 1.4 * len(video.response_text.split()) + 5 < 60


def test_single_words_do_not_give_harm_away(corpus: Path) -> None:
    """Ridge regression on what each response holds; pairs of neighbouring words tell all."""

    def words(length: int, split: str) -> tuple[list[set[str]], np.ndarray]:
        videos = PairDataset.load(corpus / f"config-{split}.json.gz").videos
        held = []
        for video in videos:
            found = re.findall(r"\w+", str(video.response_text))
            held.append({" ".join(found[at : at + length]) for at in range(len(found))})
        return held, np.array([1.0 if video.is_safe else -1.0 for video in videos])

    def balanced_accuracy(length: int) -> float:
        (train, signs), (test, test_signs) = words(length, "train"), words(length, "test")
        known = sorted(set().union(*train))
        x, z = (np.array([[word in held for word in known] for held in part], float) for part in (train, test))
        weights = np.linalg.solve(x.T @ x + np.eye(len(known)), x.T @ signs)
        right = np.sign(z @ weights) == test_signs
        return float(np.mean([right[test_signs > 0].mean(), right[test_signs < 0].mean()]))

    assert 0.6 < balanced_accuracy(1) < 0.82
    assert balanced_accuracy(2) > 0.97


def load(folder: Path, records: list[Row]) -> PairDataset:
    (folder / "config.json").write_text(json.dumps(records))
    return PairDataset.load(folder / "config.json")
