"""VideoAlign's CSV into SafeSora's form: ties stay ties, and every wrong cell and damaged file is named."""

from __future__ import annotations

import csv
import hashlib
import json
import random
import shutil
from pathlib import Path

import pytest
from conftest import launch, read_records, write_training_config

from safe_rlhf_video.data.datasets import PairDataset
from safe_rlhf_video.data.records import TIE
from safe_rlhf_video.data.sources.conversion import REPEATED
from safe_rlhf_video.data.sources.video_align import SAME_CLIP, convert_csv
from safe_rlhf_video.errors import SampleError
from safe_rlhf_video.scoring.scorer import Scorer

HEADER = "path_A,path_B,prompt,VQ,MQ,TA,Overall"
ROW = "videos/a.mp4,videos/b.mp4,a cat,A,B,same,A"


def write_csv(folder: Path, *lines: str | bytes) -> Path:
    path = folder / "pairs.csv"
    path.write_bytes(b"".join((line if isinstance(line, bytes) else line.encode()) + b"\n" for line in lines))
    return path


def load(folder: Path, records: list[dict]) -> PairDataset:
    (folder / "config.json").write_text(json.dumps(records))
    return PairDataset.load(folder / "config.json")


def test_a_row_becomes_a_pair(tmp_path: Path) -> None:
    csv_file = write_csv(tmp_path, HEADER + ",A_model,B_model,fps_A,num_frames_A", ROW + ",gen 1,,24.0,48")
    records, found = convert_csv(csv_file, tmp_path)
    assert found == {"a tie in instruction_following": ["pairs.csv line 2"]}
    dataset = load(tmp_path, records)
    (pair,) = dataset.pairs
    assert pair.prompt_text == "a cat"
    assert pair.preferences == {
        "helpfulness": 0,
        "harmlessness": None,
        "instruction_following": TIE,
        "correctness": None,
        "informativeness": None,
        "aesthetics": 0,
    }
    assert pair.extra["sub_preferences"] == {"motion_quality": "video_1"}
    assert pair.extra["source_fields"] == {"fps_A": "24.0", "num_frames_A": "48"}
    assert (pair.video_0.generated_from, pair.video_1.generated_from, pair.video_0.is_safe) == ("gen 1", None, None)
    assert pair.video_0.video_path == "videos/a.mp4"
    assert dataset.video_file(pair.video_1) == (tmp_path / "videos" / "b.mp4").resolve()


def test_the_same_path_is_one_video_however_it_is_written(tmp_path: Path) -> None:
    lines = [
        HEADER,
        ROW,
        "./videos/b.mp4,videos//a.mp4,a cat,,,,B",  # the first row the other way round
        "videos/a.mp4,videos/c/../b.mp4,a cat,A,,,",
        "videos/b.mp4,./videos/b.mp4,a cat,same,same,same,same",
        "videos/a.mp4,videos/c.mp4,a dog,A,,,",
    ]
    records, found = convert_csv(write_csv(tmp_path, *lines), tmp_path)
    dataset = load(tmp_path, records)
    assert (dataset.num_pairs, dataset.num_prompts, dataset.num_videos) == (4, 2, 4)
    assert found[SAME_CLIP] == ["pairs.csv line 5"]
    assert found[REPEATED] == ["pairs.csv line 3", "pairs.csv line 4"]
    assert found["no label of helpfulness"] == ["pairs.csv line 4", "pairs.csv line 6"]
    assert dataset.pairs[1].preferences["helpfulness"] == 1
    assert len({pair.pair_id for pair in dataset.pairs}) == 4


@pytest.mark.parametrize(
    "lines",
    [
        (b"\xef\xbb\xbf" + HEADER.encode(), ROW),
        (HEADER + "\r", "", ROW + "\r", "\r"),
        ("Overall,path_B,prompt,path_A,VQ", "A,videos/b.mp4,a cat,videos/a.mp4,A"),
        ('"path_A","path_B","prompt","Overall","VQ"', '"videos/a.mp4","videos/b.mp4","a cat","A","A"'),
    ],
    ids=["BOM", "CRLF and empty lines", "another order", "quotes"],
)
def test_a_csv_is_read_however_it_was_saved(tmp_path: Path, lines: tuple[str | bytes, ...]) -> None:
    records, _ = convert_csv(write_csv(tmp_path, *lines), tmp_path)
    assert len(records) == 1
    assert records[0]["prompt_text"] == "a cat"
    assert (records[0]["helpfulness"], records[0]["sub_preferences"]["aesthetics"]) == ("video_0", "video_0")
    assert records[0]["video_0"]["video_id"] == hashlib.sha256(b"videos/a.mp4").hexdigest()


def test_a_file_with_one_column_of_labels_and_texts_with_line_breaks(tmp_path: Path) -> None:
    prompt = 'two lines,\nand a "quote"'
    path = tmp_path / "bench.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerows([["path_A", "path_B", "prompt", "MQ"], ["a.mp4", "b.mp4", prompt, "B"]])
        writer.writerow(["a.mp4", "b.mp4", "one line", "C"])
    with pytest.raises(
        SampleError, match=r"^bench.csv line 4 column MQ: 'C' is not a label, expected A, B, same or nothing"
    ):
        convert_csv(path, tmp_path)
    path.write_text(path.read_text().replace(",C", ",same"))
    records, _ = convert_csv(path, tmp_path)
    assert [record["prompt_text"] for record in records] == [prompt, "one line"]
    assert [record["sub_preferences"] for record in records] == [{"motion_quality": "video_1"}, {"motion_quality": TIE}]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ((), "pairs.csv: empty, expected a header"),
        ((b"\n \n",), "pairs.csv: empty, expected a header"),
        (
            (HEADER.replace("path_B", "path_b"), ROW),
            r"column path_B: missing; the header has \['path_A', 'path_b', 'prompt'",
        ),
        ((HEADER.replace("Overall", "VQ"), ROW), "column 'VQ': is 2 times in the header"),
        ((HEADER.replace("Overall", '"a\nb","a\nb"'), ROW), r"column 'a\\nb': is 2 times in the header"),
        ((HEADER + ",".join(map(str, range(99))), ROW), "line 2: 7 cells, expected 105"),
        ((HEADER.replace("prompt", "prompt "), ROW), r"column prompt: missing; .*, 'prompt ', "),
        (("path_A,path_B,prompt,vq", "a,b,c,A"), "no column of labels, expected one of Overall, TA, VQ, MQ; the head"),
        ((HEADER, ROW[:-1] + "a"), "line 2 column Overall: 'a' is not a label"),
        ((HEADER, ROW[:-1] + "22"), "line 2 column Overall: '22' is not a label"),
        ((HEADER, ROW.replace("same", "Same")), "line 2 column TA: 'Same' is not a label"),
        ((HEADER, ROW, HEADER), "line 3 column Overall: 'Overall' is not a label"),
        ((HEADER, ROW.replace("a cat", " ")), "line 2 column prompt: empty"),
        ((HEADER, ROW.replace("videos/b.mp4", "")), "line 2 column path_B: empty"),
        ((HEADER, ROW + ",A"), "line 2: 8 cells, expected 7 as in the header"),
        ((HEADER, ROW, "a,b"), "line 3: 2 cells, expected 7"),
        ((HEADER, ROW.replace("a cat", "a, cat")), "line 2: 8 cells, expected 7"),
        ((HEADER, ROW, ROW.replace("a cat", '"a cat'), ROW), "line 3: not valid CSV"),
        ((HEADER, ROW.replace("a cat", '"a "cat"')), "line 2: not valid CSV"),
        ((HEADER, ROW.replace("a cat", "a" * 200_000)), "line 2: not valid CSV .field larger than field limit"),
        ((HEADER, ROW, ROW.replace("cat", "c\0t")), "line 3: holds a NUL"),
        ((HEADER, ROW, ROW.encode("utf-8").replace(b"cat", b"c\xe4t")), "line 3: not UTF-8"),
        ((HEADER.encode("utf-16"),), "line 1: not UTF-8"),
        (
            (HEADER, ROW.replace("videos/a.mp4", "../a.mp4")),
            "column path_A: '../a.mp4' leads out of the config's folder",
        ),
        ((HEADER, ROW.replace("videos/b.mp4", "/etc/passwd")), "column path_B: '/etc/passwd' leads out of the config"),
    ],
)
def test_what_is_wrong_is_named_in_one_line(tmp_path: Path, lines: tuple[str | bytes, ...], message: str) -> None:
    with pytest.raises(SampleError, match=message) as error:
        convert_csv(write_csv(tmp_path, *lines), tmp_path)
    assert "\n" not in str(error.value)
    assert "pairs.csv" in str(error.value)


def test_names_that_differ_in_white_space_are_two_columns(tmp_path: Path) -> None:
    records, found = convert_csv(write_csv(tmp_path, '" ",' + HEADER + ',,"a  b",a b', "1," + ROW + ",2,3,4"), tmp_path)
    assert records[0]["source_fields"] == {" ": "1", "": "2", "a  b": "3", "a b": "4"}
    assert list(found) == ["a tie in instruction_following"]


def test_a_column_of_labels_that_is_not_there_is_told(tmp_path: Path) -> None:
    """VideoAlign's training file has no Overall."""
    lines = (HEADER.removesuffix(",Overall"), ROW.removesuffix(",A"))
    records, found = convert_csv(write_csv(tmp_path, *lines), tmp_path)
    assert found["no column Overall: helpfulness has no label"] == ["pairs.csv line 1"]
    assert "source_fields" not in records[0]


def test_a_path_without_an_ending_is_that_of_the_mp4(tmp_path: Path) -> None:
    lines = [
        HEADER,
        ROW.replace("a.mp4", "a"),
        ROW,
        ROW.replace("b.mp4", "a"),
        ROW.replace("videos/a.mp4", "videos/.."),
    ]
    records, found = convert_csv(write_csv(tmp_path, *lines[:-1]), tmp_path)
    assert found[SAME_CLIP] == ["pairs.csv line 4"]
    assert found[REPEATED] == ["pairs.csv line 3"]
    assert records[0]["video_0"] == records[1]["video_0"]
    with pytest.raises(SampleError, match=r"line 5 column path_A: 'videos/\.\.' leads out"):
        convert_csv(write_csv(tmp_path, *lines), tmp_path)
    # A clip that really has no ending is taken as it is.
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos/a").touch()
    records, _ = convert_csv(write_csv(tmp_path, *lines[:-1]), tmp_path)
    assert [record["video_0"]["video_path"] for record in records] == ["videos/a", "videos/a.mp4", "videos/a.mp4"]


def test_a_link_that_leads_out_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "videos").symlink_to(tmp_path)
    with pytest.raises(SampleError, match=r"^pairs.csv line 2 column path_A: 'videos/a.mp4' leads out"):
        convert_csv(write_csv(tmp_path, HEADER, ROW), tmp_path / "data")


def test_a_row_of_many_lines_is_named_by_its_first(tmp_path: Path) -> None:
    long = ROW.replace("a cat", '"a\ncat\n\n"')
    with pytest.raises(SampleError, match=r"^pairs.csv line 6 column Overall"):
        convert_csv(write_csv(tmp_path, HEADER, long, ROW[:-1] + "X"), tmp_path)


def test_mutated_files_are_read_or_refused(tmp_path: Path) -> None:
    whole = "\n".join([HEADER, *(ROW.replace("cat", f"cat {number}") for number in range(5))]).encode()
    rng = random.Random(0)
    refused = 0
    for _ in range(300):
        content = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(content))
            change = rng.randrange(3)
            if change == 0:
                content[at] = rng.randrange(256)
            elif change == 1:
                del content[at : at + rng.randint(1, 40)]
            else:
                content[at:at] = rng.choice([b'"', b",", b"\n", b"\r", b"\0", b"\xff", b"../", b"same"])
            content = content or bytearray(b" ")
        path = tmp_path / "pairs.csv"
        path.write_bytes(content)
        try:
            records, _ = convert_csv(path, tmp_path)
        except SampleError:
            refused += 1
        else:
            load(tmp_path, records)
    assert 100 < refused < 300


@pytest.mark.slow
def test_a_file_of_sub_dimensions_alone_is_trained_and_scored(world: Path, tmp_path: Path) -> None:
    """VideoAlign's training file, without Overall: no reward can be learned from it."""
    rows = [
        f"{record['prompt_id']}/{record['video_0']['video_id']}.mp4,{record['prompt_id']}/{record['video_1']['video_id']}"
        f".mp4,{record['prompt_text'].replace(',', ' ')},{'AB'[number % 2]},{'BA'[number % 3 == 0]}"
        for number, record in enumerate(read_records(world))
    ]
    data = tmp_path / "data"
    csv_file = write_csv(tmp_path, "path_A,path_B,prompt,VQ,TA", *rows)
    shutil.copytree(world / "videos", data)
    out = data / "config-train.json.gz"
    launch("scripts/convert.py", "videoalign", "--input", csv_file, "--out", out)
    config = write_training_config(tmp_path / "run.yaml", out, optimization={"max_steps": 2})
    refused = launch("scripts/train_reward.py", "--config", config, check=False).stderr
    assert "helpfulness label" in refused
    assert "heads: [instruction_following, aesthetics]" in refused
    launch("scripts/train_reward.py", "--config", config, "--heads", "[instruction_following,aesthetics]")
    clips = [data / cell for cell in rows[0].split(",")[:2]]
    with Scorer.from_pretrained(tmp_path / "run", device="cpu") as scorer:
        judged = scorer.score_pair("a cat", *clips)
    assert judged.sub_scores.keys() == {"instruction_following", "aesthetics"}
    assert judged.preferred is None


def test_the_command_writes_a_config_that_loads(world: Path, tmp_path: Path) -> None:
    """Clips below the config's folder but not beside the CSV; the same bytes each time."""
    clips = tmp_path / "data" / "clips"
    clips.mkdir(parents=True)
    first, second = "1.mp4", "2.mp4"
    for name, source in zip((first, second), (world / "videos").rglob("*.mp4"), strict=False):
        shutil.copy(source, clips / name)
    csv_file = write_csv(tmp_path, HEADER, f"{first},{second},a cat,A,B,same,same", f"{first},no.mp4,a cat,,,,")
    written = []
    for name in ("a.json.gz", "b.json.gz"):
        out = tmp_path / "data" / name
        arguments = ("videoalign", "--input", csv_file, "--out", out, "--video_dir", clips)
        printed = launch("scripts/convert.py", *arguments).stdout
        written.append(out.read_bytes())
    assert written[0] == written[1]
    assert "2 comparisons, 1 prompts, 3 clips" in printed
    assert "1  clips are not there yet" in printed
    assert "1  a tie in helpfulness: pairs.csv line 2" in printed
    findings = (tmp_path / "data/b.findings.jsonl").read_text()
    assert findings == (tmp_path / "data/a.findings.jsonl").read_text()
    assert json.loads(findings.splitlines()[0]) == {"where": "pairs.csv line 2", "finding": "a tie in helpfulness"}
    assert len(findings.splitlines()) == 6
    assert PairDataset.load(out).pairs[0].video_0.video_path == "clips/1.mp4"

    done = launch("scripts/convert.py", *arguments[:-1], tmp_path / "elsewhere", check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("error: pairs.csv line 2 column path_A: ")
    assert done.stderr.count("\n") == 1
    assert out.read_bytes() == written[1]
