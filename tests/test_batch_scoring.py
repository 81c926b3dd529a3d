"""scripts/score.py over many clips: formats, shares, resuming, bad rows, and runs that are killed."""

import codecs
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from clips import write_clip
from conftest import ROOT, command, environment, launch
from small_models import COST, one_line, share_loaded, write_model, write_reward_and_cost

from safe_rlhf_video.errors import CheckpointError, ConfigError, SampleError, VideoDecodeError
from safe_rlhf_video.files import lock_folder, write_whole
from safe_rlhf_video.responses import TextResponse
from safe_rlhf_video.scoring import input_rows, score_parts, score_rows
from safe_rlhf_video.scoring.decisions import judge_pair
from safe_rlhf_video.scoring.devices import Shard, read_shard
from safe_rlhf_video.scoring.input_rows import InputRow
from safe_rlhf_video.scoring.score_many import ScoreRequest
from safe_rlhf_video.scoring.score_parts import content_key, score_in_parts
from safe_rlhf_video.scoring.scorer import Scorer
from safe_rlhf_video.stats.credit import TIE_TOLERANCE

Record = dict[str, Any]
RunScore = Callable[..., int]

PROMPTS = [f"a {colour} {shape}" for colour in ("red", "blue", "green", "grey") for shape in ("kite", "cube", "fish")]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_reward_and_cost(tmp_path_factory.mktemp("models"))


@pytest.fixture
def score(folders: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> RunScore:
    """Run the script's main in this process, as one rank of some; its exit code is returned, its errors are raised."""
    from safe_rlhf_video.commands.score import main

    share_loaded(monkeypatch)

    def run(source: Path, out: Path, *arguments: object, rank: int = 0, world_size: int = 1) -> int:
        for name, value in (("RANK", rank), ("WORLD_SIZE", world_size), ("LOCAL_RANK", rank)):
            monkeypatch.setenv(name, str(value))
        models = () if "--model" in arguments else ("--model", *folders)
        words = ["score.py", *models, "--input", source, "--out", out, "--workers", 1, *arguments]
        monkeypatch.setattr(sys, "argv", list(map(str, words)))
        try:
            main()
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    return run


def write_input(folder: Path, num_rows: int, num_clips: int, seed: int = 0) -> Path:
    """Pairs of clips of the same prompt, so that a clip stands in many rows."""
    rng = random.Random(seed)
    folder.mkdir(exist_ok=True)
    clips_of: dict[str, list[str]] = {prompt: [] for prompt in PROMPTS}
    for number in range(num_clips):
        write_clip(folder / f"{number}.mp4", 4, 32, 32, seed=number, codec_options={"preset": "ultrafast"})
        clips_of[PROMPTS[number % len(PROMPTS)]].append(f"{number}.mp4")
    rows = []
    for number in range(num_rows):
        prompt = rng.choice(PROMPTS)
        first, second = rng.sample(clips_of[prompt], 2)
        rows.append({"pair_id": f"pair {number}", "prompt": prompt, "v1": first, "v2": second})
    return write_rows(folder / "pairs.jsonl", rows)


def write_rows(path: Path, rows: list[Record]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read_rows(path: Path) -> list[Record]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def parts_of(out: Path) -> Path:
    return out.with_name(f"{out.name}.parts")


def keys_in_parts(out: Path) -> list[str]:
    """The keys of all whole lines, of all processes."""
    keys = []
    for part in parts_of(out).glob("*.jsonl"):
        lines = part.read_bytes().split(b"\n")[1:-1]
        keys += [json.loads(line)["key"] for line in lines]
    return keys


def check_rows(out: Path, source: Path, folders: tuple[Path, Path]) -> None:
    """The output is what one pass over the clips of the input, in this process, gives, row by row."""
    wanted = read_rows(source)
    clips = list({(row["prompt"], row[side]) for row in wanted for side in ("v1", "v2")})
    with Scorer.from_pretrained(*folders, device="cpu", workers=1) as scorer:
        made = scorer.iterate([prompt for prompt, _ in clips], [source.parent / name for _, name in clips])
        scores = dict(zip(clips, made, strict=True))
    rows = read_rows(out)
    assert len(rows) == len(wanted)
    for row, asked in zip(rows, wanted, strict=True):
        assert row["pair_id"] == asked["pair_id"]
        assert (row["prompt"], Path(row["v1"]).name, Path(row["v2"]).name) == (
            asked["prompt"],
            asked["v1"],
            asked["v2"],
        )
        first, second = (scores[asked["prompt"], asked[side]] for side in ("v1", "v2"))
        judged = judge_pair({head: (value, second[head]) for head, value in first.items()})
        assert row["rewards"] == pytest.approx(judged.rewards, abs=1e-5)
        assert row["costs"] == pytest.approx(judged.costs, abs=1e-5)
        gap = judged.lagrangian_scores[0] - judged.lagrangian_scores[1]
        assert row["preferred"] == judged.preferred or abs(gap) <= 1e-5 + TIE_TOLERANCE


def test_any_number_of_processes_and_both_formats(
    score: RunScore, folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = write_input(tmp_path / "data", 60, 40), tmp_path / "scores.jsonl"
    clips = {row[side] for row in read_rows(source) for side in ("v1", "v2")}
    # Rank 1 of 3 ends, ranks 0 and 2 never come; then two processes, the second of them first.
    assert score(source, out, rank=1, world_size=3) == 0
    assert not out.exists()
    assert len(keys_in_parts(out)) == len(range(1, len(clips), 3))
    assert score(source, out, "--batch_size", 7, rank=1, world_size=2) == 0
    capsys.readouterr()
    assert score(source, out, rank=0, world_size=2) == 0
    assert capsys.readouterr().out.startswith(f"{out}: 60 pairs of {len(clips)} clips scored; preferred: v1 ")
    check_rows(out, source, folders)
    assert len(keys_in_parts(out)) == len(set(keys_in_parts(out))) == len(clips)

    # Again: nothing is scored, the file is written anew, with another lambda too.
    kept, first = keys_in_parts(out), out.read_bytes()
    out.unlink()
    assert score(source, out) == 0
    assert (out.read_bytes(), keys_in_parts(out)) == (first, kept)
    assert score(source, out, "--lagrange_multiplier", 0) == 0
    assert {row["lagrange_multiplier"] for row in read_rows(out)} == {0.0}
    assert keys_in_parts(out) == kept

    # The same as Parquet, which lists ids alone as numbers and has a column that nobody asked for.
    table = pa.Table.from_pylist([{**row, "note": [1, 2]} for row in read_rows(source)])
    pq.write_table(table, source.with_suffix(".parquet"))
    assert score(source.with_suffix(".parquet"), tmp_path / "b.parquet", "--lagrange_multiplier", 0) == 0
    for row, other in zip(read_rows(out), pq.read_table(tmp_path / "b.parquet").to_pylist(), strict=True):
        assert row.keys() == other.keys()
        assert not other["sub_scores"]
        for name, value in row.items():
            if name in ("rewards", "costs", "lagrangian_scores"):
                assert other[name] == pytest.approx(value, abs=1e-5)
            elif name in ("pair_id", "prompt", "v1", "v2", "is_safe", "preferred", "percentiles", "calibrated"):
                assert other[name] == value


def test_single_clips_and_texts(score: RunScore, folders: tuple[Path, Path], tmp_path: Path) -> None:
    source = write_input(tmp_path / "data", 1, 24)
    clips = [{"prompt": PROMPTS[n % 12], "video": f"{n}.mp4", "video_id": 100 + n, "v1": None} for n in range(13)]
    del clips[4]["video_id"]
    out = tmp_path / "a.jsonl"
    assert score(write_rows(source.with_name("clips.jsonl"), clips), out) == 0
    rows = read_rows(out)
    assert [row["video_id"] for row in rows] == [str(100 + n) if n != 4 else "4" for n in range(13)]
    with Scorer.from_pretrained(*folders, device="cpu", workers=1) as scorer:
        for row, clip in zip(rows, clips, strict=True):
            expected = scorer.score(clip["prompt"], source.parent / clip["video"])
            assert {head: row[head] for head in expected} == pytest.approx(expected, abs=1e-5)
            assert row["is_safe"] == (row["cost"] <= 0)
        # A reward alone scores clips; texts stand in the place of clips.
        text = {"video_id": "t", "prompt_id": "p", "prompt_text": PROMPTS[0], "response_text": "a kite, red"}
        clip = {"video_id": "v", "prompt_id": "p", "prompt_text": PROMPTS[0], "video_path": "data/0.mp4"}
        (tmp_path / "config.json").write_text(json.dumps([text, clip]))
        assert score(tmp_path / "config.json", tmp_path / "c.parquet") == 0
        first, second = pq.read_table(tmp_path / "c.parquet").to_pylist()
        assert (first["prompt_id"], first["video_id"], first["video"]) == ("p", "t", "a kite, red")
        expected = scorer.score(PROMPTS[0], TextResponse("a kite, red"))
        assert {head: first[head] for head in expected} == pytest.approx(expected, abs=1e-5)
        assert second["reward"] == pytest.approx(rows[0]["reward"], abs=1e-5)
        assert score(tmp_path / "config.json", tmp_path / "d.jsonl", "--model", folders[0]) == 0
        assert set(read_rows(tmp_path / "d.jsonl")[0]) == {"prompt_id", "video_id", "prompt", "video", "reward"}
    # What the first row has not, another may have.
    harms = write_model(tmp_path / "harms", {"moderation": ("harm_crime",)}, seed=3)
    assert score(tmp_path / "config.json", tmp_path / "e.parquet", "--model", folders[0], harms) == 0
    first, second = pq.read_table(tmp_path / "e.parquet").to_pylist()
    assert first["harms"] is None
    assert 0 < second["harms"]["probabilities"]["crime"] < 1


def test_lists_are_put_in_order(
    score: RunScore, folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_input(tmp_path / "data", 1, 24)
    rows = [
        {"prompt_id": f"p{n}", "prompt": PROMPTS[n], "videos": [f"{(n + m) % 24}.mp4" for m in range(1 + n)]}
        for n in range(5)
    ]
    harms = write_model(tmp_path / "harms", {"moderation": ("harm_any", "harm_crime")}, seed=3)
    models = ("--model", *folders, harms)
    source = write_rows(source.with_name("lists.jsonl"), rows)
    assert score(source, tmp_path / "a.jsonl", "--lagrange_multiplier", 2, *models) == 0
    assert "5 lists of 15 clips put in order" in capsys.readouterr().out
    pq.write_table(pa.Table.from_pylist(rows), source.with_suffix(".parquet"))
    assert score(source.with_suffix(".parquet"), tmp_path / "b.parquet", "--lagrange_multiplier", 2, *models) == 0
    found, others = read_rows(tmp_path / "a.jsonl"), pq.read_table(tmp_path / "b.parquet").to_pylist()
    with Scorer.from_pretrained(*folders, harms, device="cpu", workers=1) as scorer:
        for row, other, asked in zip(found, others, rows, strict=True):
            videos = [source.parent / name for name in asked["videos"]]
            expected = scorer.rank(asked["prompt"], videos, lagrange_multiplier=2)
            assert (row["prompt_id"], row["order"]) == (asked["prompt_id"], list(expected.order))
            assert row["rewards"] == pytest.approx(expected.rewards, abs=1e-5)
            assert row["videos"] == other["videos"] == [str(video) for video in videos]
            assert (other["order"], other["is_safe"]) == (row["order"], row["is_safe"])
            judged = scorer.moderate(asked["prompt"], videos[-1])
            assert row["harms"][-1]["probabilities"] == pytest.approx(dict(judged.probabilities), abs=1e-5)
            assert row["harms"][-1]["flags"] == list(judged.flags)
    wrong = [{"prompt": "a", "videos": []}, {"prompt": "a", "videos": "0.mp4"}, {"prompt": "a", "videos": ["0.mp4", 7]}]
    for row in wrong:
        with one_line(SampleError, "row 0 field videos"):
            score(write_rows(source.with_name("wrong.jsonl"), [row]), tmp_path / "w.jsonl")
    with one_line(SampleError, "row 0: has a clip and a list of videos"):
        score(write_rows(source.with_name("wrong.jsonl"), [{"prompt": "a", "video": "0.mp4", "videos": ["1.mp4"]}]),
              tmp_path / "w.jsonl")  # fmt: skip


def test_one_model_alone_orders_and_says_what_is_missing(
    score: RunScore, folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write_input(tmp_path / "data", 4, 24)
    assert score(source, tmp_path / "a.parquet", "--model", folders[0]) == 0
    assert "decided by reward alone, no cost model" in capsys.readouterr().out
    for row in pq.read_table(tmp_path / "a.parquet").to_pylist():
        assert row["preferred"] == ("v1" if row["rewards"][0] > row["rewards"][1] else "v2")
        assert (row["costs"], row["is_safe"], row["lagrange_multiplier"]) == (None, None, None)
    with one_line(ConfigError, "lagrange_multiplier: weighs a reward against a cost"):
        score(source, tmp_path / "b.jsonl", "--model", folders[0], "--lagrange_multiplier", 2)
    aesthetics = write_model(tmp_path / "aesthetics", {"aesthetics": ("aesthetics",)})
    lists = write_rows(source.with_name("lists.jsonl"), [{"prompt": "a", "videos": ["0.mp4", "1.mp4"]}])
    assert score(lists, tmp_path / "c.jsonl", "--model", aesthetics) == 0
    assert "scored; decided by nothing, no reward or cost model" in capsys.readouterr().out
    (row,) = read_rows(tmp_path / "c.jsonl")
    assert row["order"] is None
    assert len(row["sub_scores"]["aesthetics"]) == 2


def test_rows_that_programs_read_differently(tmp_path: Path) -> None:
    source = tmp_path / "pairs.jsonl"

    def row(more: str = "") -> str:
        return f'{{"prompt": "a", "v1": "0.mp4", "v2": "1.mp4"{more}}}'

    def read(*lines: str, **options: Any) -> tuple[list[InputRow], list[str]]:
        source.write_bytes(codecs.BOM_UTF8 + "\n".join(lines).encode("utf-8", "surrogatepass"))
        rows, bad = input_rows.read_rows(source, **options)
        return rows, [str(one.error) for one in bad]

    rows, bad = read(row(), row(', "v1": "2.mp4"'), row(', "pair_id": "\\ud800"'), row(f', "x": {"[" * 10**5}'))
    assert [one.number for one in rows] == [0]
    for place, part in enumerate(("the key 'v1' is twice", "field pair_id: expected text without lone", "too deeply")):
        assert f"row {place + 1}" in bad[place]
        assert part in bad[place]
    assert rows[0].responses == {"v1": tmp_path / "0.mp4", "v2": tmp_path / "1.mp4"}
    (tmp_path / "clips").mkdir()
    (moved,), _ = read(row(), video_dir=str(tmp_path / "clips"))
    assert moved.responses == {"v1": tmp_path / "clips" / "0.mp4", "v2": tmp_path / "clips" / "1.mp4"}
    with one_line(SampleError, "row 1: has no pair_id, and its number is that of row 0"):
        read(row(', "pair_id": "1"'), row())
    with one_line(SampleError, "pairs.parquet: cannot be read as Parquet"):
        damaged = pa.array([b"a", b"\xff"]).cast(pa.string(), safe=False)
        columns = {"prompt": damaged, "v1": ["0.mp4"] * 2, "v2": ["1.mp4"] * 2}
        pq.write_table(pa.table(columns), tmp_path / "pairs.parquet")
        input_rows.read_rows(tmp_path / "pairs.parquet")


def test_bad_rows_are_refused_or_dropped_and_told(
    score: RunScore, folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, out = write_input(tmp_path / "data", 30, 24), tmp_path / "scores.jsonl"
    good = read_rows(source)
    broken = source.parent / "broken.mp4"
    broken.write_bytes(b"no video")
    bad = {
        0: '{"pair_id": "x", "prompt": "", "v1": "0.mp4", "v2": "12.mp4"}',
        3: "not json",
        4: '{"prompt": "a\\ud800", "v1": "0.mp4", "v2": "12.mp4"}',
        5: "[1, 2]",
        6: '{"prompt": "a", "video": "0.mp4"}',
        7: '{"prompt": "a", "v1": "0.mp4", "video": "0.mp4"}',
        11: '{"prompt": "a", "v1": "0.mp4"}',
        12: json.dumps({"pair_id": "gone", "prompt": PROMPTS[0], "v1": "0.mp4", "v2": "gone.mp4"}),
        20: json.dumps({"pair_id": "broken", "prompt": PROMPTS[0], "v1": "broken.mp4", "v2": "0.mp4"}),
    }  # fmt: skip
    lines = [json.dumps(row) for row in good]
    for number, line in bad.items():
        lines.insert(number, line)
    lines.insert(30, "")  # a blank line is no row, but counts
    source.write_text("\n".join(lines))
    with one_line(SampleError, "row 0 field prompt", "non-empty", "7 such rows", "--bad_rows drop"):
        score(source, out)
    source.write_text("\n".join(lines[12:]))
    with one_line(VideoDecodeError, "row 0 field v2", "gone.mp4", "--bad_rows drop"):
        score(source, out)
    assert not parts_of(out).exists()  # nothing was scored
    source.write_text("\n".join(lines[13:]))
    with one_line(VideoDecodeError, "broken.mp4"):
        score(source, tmp_path / "refused.jsonl", "--batch_size", 4)
    assert keys_in_parts(tmp_path / "refused.jsonl")  # what was scored before is kept
    assert not (tmp_path / "refused.jsonl").exists()

    source.write_text("\n".join(lines))
    capsys.readouterr()
    # Two processes with another point of view come to the same.
    assert score(source, out, "--bad_rows", "drop", rank=1, world_size=2) == 0
    assert score(source, out, "--bad_rows", "drop", rank=0, world_size=2) == 2
    side_file = tmp_path / "scores.jsonl.bad.jsonl"
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.endswith(f"; 9 of 39 rows are bad and left out, {side_file} says why")
    told = read_rows(side_file)
    assert [row["row"] for row in told] == list(bad)
    parts = [
        "non-empty",
        "not valid JSON",
        "surrogates",
        "object",
        "a clip, but row 1 is a pair",
        "a clip and a pair",
        "field v2",
    ]
    for row, part in zip(told, [*parts, "gone.mp4: no such file", "broken.mp4"], strict=True):
        assert part in row["reason"], row
    assert [told[place].get("pair_id") for place in (0, 1, 7, 8)] == ["x", None, "gone", "broken"]
    check_rows(out, write_rows(source.with_name("good.jsonl"), good), folders)

    # The clips are put right: they alone are scored, and only rows with wrong fields are left.
    num_scored = len(keys_in_parts(out))
    for name in ("gone.mp4", "broken.mp4"):
        write_clip(source.parent / name, 4, 32, 32, seed=77)
    assert score(source, out, "--bad_rows", "drop") == 2
    assert len(keys_in_parts(out)) == num_scored + 2
    assert "2 clips have changed since" in capsys.readouterr().out
    assert [row["row"] for row in read_rows(side_file)] == list(bad)[:-2]
    # With none left, no side file is.
    source = write_rows(source.with_name("good.jsonl"), good)
    assert score(source, tmp_path / "scores.parquet", "--bad_rows", "drop") == 0
    assert not (tmp_path / "scores.parquet.bad.jsonl").exists()
    # And with nothing else, no output.
    broken.write_bytes(b"no video")
    source.write_text(lines[20])
    with one_line(SampleError, "all 1 rows are bad", "all.jsonl.bad.jsonl"):
        score(source, tmp_path / "all.jsonl", "--bad_rows", "drop")
    assert not (tmp_path / "all.jsonl").exists()


def test_scores_of_another_input_or_model_are_refused(
    score: RunScore, folders: tuple[Path, Path], tmp_path: Path
) -> None:
    source, out = write_input(tmp_path / "data", 10, 24), tmp_path / "scores.jsonl"
    assert score(source, out) == 0
    before = {path: path.read_bytes() for path in parts_of(out).glob("rank-*")}
    written = out.read_bytes()
    rows = read_rows(source)
    write_rows(source, rows[:-2])
    with one_line(CheckpointError, "of another model or of other clips", str(parts_of(out)), "another --out"):
        score(source, out)
    write_rows(source, [{**rows[0], "prompt": "another"}, *rows[1:]])
    with one_line(CheckpointError, "or prompts"):
        score(source, out)
    write_rows(source, rows)
    other = write_model(tmp_path / "other", COST, seed=5)
    with one_line(CheckpointError, "of another model"):
        score(source, out, "--model", folders[0], other)
    assert {path: path.read_bytes() for path in parts_of(out).glob("rank-*")} == before
    assert out.read_bytes() == written

    with one_line(ConfigError, ".jsonl or .parquet"):
        score(source, tmp_path / "scores.csv")
    (tmp_path / "x.parquet").write_bytes(b"PAR1 no table")
    with one_line(SampleError, "x.parquet: cannot be read as Parquet"):
        score(tmp_path / "x.parquet", tmp_path / "x.jsonl")
    (tmp_path / "file.jsonl.parts").write_text("in the way")
    with one_line(CheckpointError, "file.jsonl.parts"):
        score(source, tmp_path / "file.jsonl")


def test_parts_that_a_kill_or_a_power_cut_left(
    score: RunScore,
    folders: tuple[Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source, out = write_input(tmp_path / "data", 40, 24), tmp_path / "scores.jsonl"
    with lock_folder(parts_of(out)), one_line(ConfigError, "scores.jsonl.parts: another process is writing it"):
        score(source, out)

    def write_alone(path: Path, content: Any) -> None:
        with one_line(ConfigError, "another process is writing it"), lock_folder(parts_of(out)):
            pass
        write_whole(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(score_rows, "write_whole", write_alone)  # until the output is there
        assert score(source, out) == 0
    (part,) = parts_of(out).glob("rank-*")
    whole = part.read_bytes()
    lines = whole.splitlines(keepends=True)
    num_clips = len(lines) - 1
    for kept, num_good in (
        (b"", 0),
        (lines[0][:20], 0),
        (lines[0], 0),
        (b"".join(lines[:6]) + lines[6][:-3], 5),
        (b"".join(lines[:6]) + bytes(40), 5),
        (b"".join(lines[:6]) + bytes(40) + b"\n" + lines[8], 5),
    ):
        for old in parts_of(out).glob("rank-*"):
            old.unlink()
        part.write_bytes(kept)
        out.unlink()
        assert score(source, out) == 0
        assert part.read_bytes() == kept  # a file of another process is never touched
        (new,) = set(parts_of(out).glob("rank-*")) - {part}
        assert len(new.read_bytes().splitlines()) == 1 + num_clips - num_good
    check_rows(out, source, folders)
    # A clip in the place of another is seen by its time.
    capsys.readouterr()
    os.utime(source.parent / read_rows(source)[0]["v1"], (0, 0))
    assert score(source, out) == 0
    assert "1 clips have changed since they were scored" in capsys.readouterr().out


def test_rank_0_does_not_wait_for_the_dead(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("SILENCE_S", 2.0), ("BEAT_S", 0.2), ("POLL_S", 0.1)):
        monkeypatch.setattr(score_parts, name, value)
    texts = [TextResponse(f"text {number}") for number in range(9)]
    requests = [ScoreRequest(content_key("a", text), "a", text) for text in texts]
    with Scorer.from_pretrained(*folders, device="cpu") as scorer:
        assert score_in_parts(scorer, requests, tmp_path / "parts", Shard(1, 3)) is None
        with one_line(CheckpointError, "3 of 9 clips are missing, those of rank 2", "2 s"):
            score_in_parts(scorer, requests, tmp_path / "parts", Shard(0, 3))

        # One that lives is waited for, however long it is at a batch.
        own = score_parts.score_many

        def slowly(*arguments: Any) -> Iterator[Any]:
            time.sleep(3.5)
            yield from own(*arguments)

        monkeypatch.setattr(score_parts, "score_many", slowly)
        late = threading.Thread(target=score_in_parts, args=(scorer, requests, tmp_path / "parts", Shard(2, 3)))
        late.start()
        time.sleep(0.3)
        monkeypatch.setattr(score_parts, "score_many", own)
        outcomes = score_in_parts(scorer, requests, tmp_path / "parts", Shard(0, 3))
        late.join()
        assert outcomes is not None
        for text, request in zip(texts, requests, strict=True):
            assert outcomes[request.key] == pytest.approx(scorer.score("a", text), abs=1e-5)


def test_places_that_are_none_are_refused() -> None:
    assert read_shard({}) == Shard(0, 1, 0, 1)
    assert read_shard({"RANK": "3", "WORLD_SIZE": "4", "LOCAL_RANK": "1", "LOCAL_SIZE": "2"}) == Shard(3, 4, 1, 2)
    for wrong in ({"RANK": "0"}, {"RANK": "2", "WORLD_SIZE": "2"}, {"RANK": "x", "WORLD_SIZE": "2"}):
        with one_line(ConfigError, "RANK=", "WORLD_SIZE="):
            read_shard(wrong)


# --- killed runs ------------------------------------------------------------------------------------------------------


class Forks:
    """Runs of the script, each a process that is forked where all imports are done."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.server = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "forking_scorer.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment(),
        )

    def ask(self, **order: object) -> int:
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        print(json.dumps(order), file=self.server.stdin, flush=True)
        return int(self.server.stdout.readline())

    def start(self, world_size: int, *arguments: object) -> list[int]:
        words = list(map(str, arguments))
        return [
            self.ask(rank=rank, world_size=world_size, arguments=words, log=str(self.log)) for rank in range(world_size)
        ]


@pytest.fixture
def forks(tmp_path: Path) -> Iterator[Forks]:
    started = Forks(tmp_path / "log")
    yield started
    assert started.server.stdin is not None
    started.server.stdin.close()
    started.server.wait(30)


NUM_CLIPS = 480  # more than ten runs score before they are killed


@pytest.fixture(scope="module")
def five_thousand(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_input(tmp_path_factory.mktemp("many") / "data", 5000, NUM_CLIPS)


def size_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*")) if folder.exists() else 0


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2])
def test_ten_kills_lose_and_double_no_row(
    forks: Forks, folders: tuple[Path, Path], five_thousand: Path, tmp_path: Path, world_size: int
) -> None:
    out = tmp_path / "scores.jsonl"
    arguments = ("--model", *folders, "--input", five_thousand, "--out", out, "--batch_size", 2, "--workers", 1)
    rng = random.Random(world_size)
    progress = []
    for number in range(10):
        size = size_of(parts_of(out))
        processes = forks.start(world_size, *arguments)
        # In turn at any time from the start on, and some clips further.
        more = rng.uniform(600, 3000) if number % 2 else 1e9
        deadline = time.monotonic() + (60 if number % 2 else rng.uniform(0, 1.0))
        while size_of(parts_of(out)) < size + more and time.monotonic() < deadline:
            time.sleep(0.002)
        rng.shuffle(processes)  # which of them dies first
        for process in processes:
            os.kill(process, signal.SIGKILL)
            time.sleep(rng.choice((0, rng.uniform(0, 0.2))))
        codes = {forks.ask(wait=process) for process in processes}
        assert -signal.SIGKILL in codes  # a rank that was done may have ended before
        assert codes <= {-signal.SIGKILL, 0}, forks.log.read_text()
        assert not out.exists()
        progress.append(len(keys_in_parts(out)))
    assert sum(later > former for former, later in zip([0, *progress], progress, strict=False)) >= 5
    assert progress[-1] < NUM_CLIPS
    # As many processes as before end it.
    processes = forks.start(world_size, *arguments)
    assert [forks.ask(wait=process) for process in processes] == [0] * world_size, forks.log.read_text()
    check_rows(out, five_thousand, folders)
    assert len(keys_in_parts(out)) == len(set(keys_in_parts(out))) == NUM_CLIPS


@pytest.mark.slow
def test_deepspeed_ranks_share_and_a_lone_error_is_told(folders: tuple[Path, Path], tmp_path: Path) -> None:
    source, out = write_input(tmp_path / "data", 300, 120), tmp_path / "scores.jsonl"
    arguments = ("--model", *folders, "--input", source, "--out", out, "--batch_size", 2)
    # The launcher is killed, without a chance to end its ranks: they go on, beside those of the next one.
    killed = subprocess.Popen(command("scripts/score.py", *arguments, ranks=2), env=environment(),
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)  # fmt: skip
    while len(keys_in_parts(out)) < 5:
        assert killed.poll() is None
        time.sleep(0.01)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    done = launch("scripts/score.py", *arguments, ranks=2, as_users_do=True)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(killed.pid, signal.SIGKILL)
    assert f"{out}: 300 pairs of 120 clips scored" in done.stdout
    check_rows(out, source, folders)

    # The third clip, in the share of rank 1 of 2 (fourth in all), cannot be read.
    names = list(dict.fromkeys(row[side] for row in read_rows(source) for side in ("v1", "v2")))
    (source.parent / names[3]).write_bytes(b"no video")
    started = time.monotonic()
    refused = launch("scripts/score.py", *arguments, ranks=2, check=False, as_users_do=True)
    assert refused.returncode
    assert f"error: rank 1: {source.parent / names[3]}" in refused.stderr
    assert time.monotonic() - started < 90
