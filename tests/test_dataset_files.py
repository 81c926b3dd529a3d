"""SafeSora's three kinds of data set as files: told apart, saved, copied with their clips, checked, made tables."""

import copy
import errno
import gzip
import json
import os
import random
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safesora_records import (
    change,
    make_prompt_record,
    make_record,
    make_text_record,
    make_video_record,
    write_clip,
    write_config,
)

from safe_rlhf_video.data.config_files import write_records
from safe_rlhf_video.data.datasets import PairDataset, PromptDataset, VideoDataset, load_any
from safe_rlhf_video.data.records import HARM_LABELS, parse_video
from safe_rlhf_video.data.video_folder import VideoFolder
from safe_rlhf_video.errors import ConfigError, SampleError

SHARED = Path(__file__).parents[1].parent / "shared"


def read_json(path: Path) -> Any:
    content = path.read_bytes()
    return json.loads(gzip.decompress(content) if path.name.endswith(".gz") else content)


def write_world(folder: Path) -> Path:
    """Three pairs of four clips in SafeSora's layout."""
    records = [make_record("1", "p", ("a", "b")), make_record("2", "p", ("b", "c")), make_record("3", "q", ("a", "b"))]
    records[2]["video_1"] |= {"video_id": "a2", "video_path": "videos/q/a2"}
    for level, name in enumerate(("p/a", "p/b", "p/c", "q/a", "q/a2")):
        write_clip(folder / f"videos/{name}.mp4", num_frames=3, level=40 * level)
    write_config(folder, records)
    return folder


# --- videos and prompts -----------------------------------------------------------------------------------------------


def test_a_video_file_is_read_whole(tmp_path: Path) -> None:
    records = [make_video_record("p", "a"), make_video_record("p", "b"), make_video_record("q", "a")]
    records[1]["prompt_labels"] = None
    records[2]["video_labels"] |= {"spam": True, "hate": None}
    dataset = VideoDataset.load(write_config(tmp_path, records, "config-train.json.gz"))
    assert (len(dataset), dataset.num_videos, dataset.num_prompts, dataset.num_pairs) == (3, 3, 2, -1)
    first, second, third = dataset.videos
    assert [key for key, applies in (first.harm_labels or {}).items() if applies] == ["crime"]
    assert [key for key, applies in (first.prompt_labels or {}).items() if applies] == ["hate"]
    assert second.prompt_labels is None
    assert third.harm_labels == {key: key == "crime" for key in HARM_LABELS if key != "hate"}
    assert (first.extra, third.extra) == ({"info": {"seed": 7}}, {"info": {"seed": 7}, "video_labels": {"spam": True}})
    assert dataset[2] == records[2] | {"video_path": str(tmp_path.resolve() / "videos/q/a.mp4")}
    dataset.set_video_dir(tmp_path / "store")
    assert dataset[2]["video_path"] == str(tmp_path.resolve() / "store/q/a.mp4")


def test_a_prompt_file_is_read_whole(tmp_path: Path) -> None:
    records = [make_prompt_record("p"), make_prompt_record("q")]
    records[1]["prompt_labels"] = {"crime": True, "spam": False}
    dataset = PromptDataset.load(write_config(tmp_path, records).parent)
    assert (len(dataset), dataset.num_prompts, dataset.num_videos, dataset.num_pairs) == (2, 2, -1, -1)
    assert dataset.videos == []
    assert dataset.check_video_integrity() == {}
    assert dataset.prompts[0].prompt_labels == dict.fromkeys(HARM_LABELS, False)
    assert dataset.prompts[1].prompt_labels == {"crime": True}
    assert dataset.prompts[1].extra == {"source": "written by hand", "prompt_labels": {"spam": False}}
    assert [dataset[0], dataset[1]] == records


@pytest.mark.parametrize(
    ("record", "field", "value", "message"),
    [
        (make_video_record(), "video_id", "a/b", "field video_id: expected a plain name without '/', "),
        (make_video_record(), "video_id", "a\nb", "field video_id: expected a plain name without control characters"),
        (make_video_record(), "video_path", None, "field video_path: expected a string, got None"),
        (make_video_record(), "response_text", "hi", "field video_path: expected null beside a response_text"),
        (make_video_record(), "prompt_text", "\ud800", "field prompt_text: expected text without lone surrogates, got"),
        (make_video_record(), "video_text", "é\udcff", "field video_text: expected text without lone surrogates, got"),
        (make_video_record(), "prompt_labels", [1], "field prompt_labels: expected an object or null, got [1]"),
        (make_video_record(), "prompt_labels.porn", 0, "field prompt_labels.porn: expected true, false or null, got 0"),
        (make_prompt_record(), "prompt_id", "", "field prompt_id: expected a non-empty string, got ''"),
        (make_prompt_record(), "prompt_labels.crime", "yes", "field prompt_labels.crime: expected true, false or null"),
    ],
)
def test_a_wrong_field_is_named(tmp_path: Path, record: dict, field: str, value: Any, message: str) -> None:
    records = [copy.deepcopy(record), copy.deepcopy(record)]
    records[0]["prompt_id"] = "another"
    change(field, value)(records[1])
    with pytest.raises(SampleError) as caught:
        load_any(write_config(tmp_path, records))
    assert str(caught.value).startswith(f"{tmp_path}/config.json row 1 {message}")
    assert "\n" not in str(caught.value)
    str(caught.value).encode()


def test_contradictions_between_rows_are_named(tmp_path: Path) -> None:
    other_text = make_video_record("p", "b") | {"prompt_text": "a dog"}
    response = make_text_record("2")
    response["video_1"]["response_text"] = "something else"
    clip = make_record("2")
    for records, message in (
        ([make_video_record()] * 2, "row 1 field video_id: 'p/a' is the id of row 0 too; remove one"),
        ([make_prompt_record()] * 2, "row 1 field prompt_id: 'p' is the id of row 0 too; remove one"),
        ([make_video_record(), other_text], "row 1 field prompt_text: differs from row 0 of the same prompt_id 'p'"),
        ([make_text_record("1"), response], "row 1 field video_1.response_text: differs from row 0 of the same video"),
        ([make_text_record("1"), clip], "row 1 field video_0.response_text: differs from row 0 of the same video"),
    ):
        write_config(tmp_path, records)
        for video_dir in (None, tmp_path):
            with pytest.raises(SampleError) as caught:
                load_any(tmp_path / "config.json", video_dir=video_dir)
            assert str(caught.value).startswith(f"{tmp_path}/config.json {message}")


def test_the_fields_of_the_first_record_tell_the_kind(tmp_path: Path) -> None:
    kinds = ((make_record(), PairDataset), (make_video_record(), VideoDataset), (make_prompt_record(), PromptDataset))
    for record, kind in kinds:
        assert type(load_any(write_config(tmp_path, [record]).parent)) is kind
    for records, message in (
        ([], "config.json: holds no record that shows what it is"),
        ([{"text": "a cat"}], "config.json row 0: expected the fields of a pair (pair_id, video_0, video_1), a vid"),
        ([["p"]], "config.json row 0: expected the fields of a pair"),
        ([{"pair_id": "1"}], "config.json row 0 field prompt_id: missing, expected a string"),
    ):
        with pytest.raises(SampleError) as caught:
            load_any(write_config(tmp_path, records))
        assert message in str(caught.value)


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    kinds = ((make_record, PairDataset), (make_video_record, VideoDataset), (make_prompt_record, PromptDataset))
    for make, right in kinds:
        # Also in a later row, and where all fields of the wrong kind are there too.
        config = write_config(tmp_path, [make(), {**make_prompt_record("q"), **make_video_record("q"), **make()}])
        for wrong in {PairDataset, VideoDataset, PromptDataset} - {right}:
            with pytest.raises(SampleError, match=rf"/config\.json row 0: has the fields of a .* {right.__name__}$"):
                wrong.load(config)
    config = write_config(tmp_path, [make_prompt_record(), make_record()])
    with pytest.raises(SampleError, match=r"/config\.json row 1: has the fields of a pair, read it with PairDataset$"):
        load_any(config)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[{"pair_id": "1", "pair_id": "2"}]', "not valid JSON (the key 'pair_id' is twice in one object)"),
        ('[{"seed": NaN}]', "not valid JSON (NaN is not a JSON value)"),
        ('[{"seed": -1e999}]', "not valid JSON (-1e999 is too large for a number)"),
        (f"[{'9' * 5000}]", "not valid JSON (Exceeds the limit"),
    ],
)
def test_json_that_readers_disagree_on_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(SampleError) as caught:
        load_any(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path}/config.json: {message}")


def test_complete_means_that_nothing_is_null(tmp_path: Path) -> None:
    makers = {PairDataset: make_record, VideoDataset: make_video_record, PromptDataset: make_prompt_record}
    holes = {
        PairDataset: ("helpfulness", "sub_preferences.information", "video_1.is_safe", "video_0.generated_from"),
        VideoDataset: ("prompt_type", "video_labels.crime", "prompt_labels", "is_safe", "video_text"),
        PromptDataset: ("prompt_type", "prompt_labels", "prompt_labels.crime"),
    }
    for kind, make in makers.items():
        whole = make()
        if kind is PairDataset:
            whole["sub_preferences"]["correctness"] = "tie"
        assert kind.load(write_config(tmp_path, [whole])).is_complete()
        for field in holes[kind]:
            record = copy.deepcopy(whole)
            change(field, None)(record)
            assert not kind.load(write_config(tmp_path, [record])).is_complete(), field


def test_responses_have_no_clip(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    records = [make_text_record("1"), make_text_record("2", "q")]
    records[1]["video_0"]["video_path"] = None
    dataset = PairDataset.load(write_config(tmp_path, records))
    assert [video.response_text for video in dataset.videos] == ["a video_0", "a video_1"] * 2
    with pytest.raises(SampleError, match=r"^/.*/config\.json video a of prompt p: has a response_text and no clip"):
        dataset.video_file(dataset.videos[0])
    assert [dataset[0], dataset[1]] == records
    assert dataset.check_video_integrity() == {}
    assert capfd.readouterr().err == ""
    saved = dataset.save(tmp_path / "saved", copy_videos=True)
    assert read_json(saved) == records
    assert not (tmp_path / "saved/videos").exists()


# --- where clips lie --------------------------------------------------------------------------------------------------


def test_no_path_escapes_whatever_links_there_are(tmp_path: Path) -> None:
    """Random trees with links of every kind, circles too; the reference is the kernel's own view of one clip a time."""
    rng = random.Random(0)
    seen = {"found": 0, "outside": 0, "not there": 0, "circle": 0}
    for number in range(40):
        base = (tmp_path / str(number)).resolve()
        root = base / "data"
        names = ["x", "y", "z.mp4", "w"]
        places = [base, root, *(root / name for name in names[:2]), root / "x/y"]
        for place in places:
            place.mkdir(parents=True)
            for name in rng.sample(["z.mp4", "w", "w.mp4", "x.mp4"], 3):
                (place / name).touch()
        for _ in range(12):
            link = rng.choice(places) / rng.choice(["l", "m", "x", "z.mp4"])
            if not os.path.lexists(link):
                link.symlink_to(rng.choice([*places, Path(".."), Path("l"), Path("z.mp4"), Path("/"), root / "none"]))
        videos = []
        for _ in range(100):
            parts = [rng.choice([*names, "l", "m", "..", ".", ""]) for _ in range(rng.randint(1, 4))]
            written = rng.choice(["", "", "", f"{root}/", f"{base}/"]) + "/".join(parts)
            videos.append(parse_video(make_video_record() | {"video_path": written or "x"}, "row"))
        for top in (root, root / "l"):
            folder = VideoFolder(top, False, "c.json")
            for video, written, file in folder.locate(videos):
                seen[judge(os.path.join(top, written), os.path.realpath(top), file)] += 1
                if file is None:
                    with pytest.raises(SampleError, match="leads out of the video folder"):
                        folder.files([video])
                else:
                    assert folder.files([video]) == [Path(file)]
    assert min(seen.values()) > 50, seen


def judge(path: str, root: str, file: str | None) -> str:
    """What the path really is; fails where `file`, its place or None for a refusal, is not the right answer."""
    if file is not None and os.path.exists(file):
        assert os.path.realpath(file, strict=True) == file
        assert os.path.commonpath((file, root)) == root != file
    try:
        real = os.path.realpath(path, strict=True)
    except OSError as error:
        if error.errno == errno.ELOOP:
            return "circle"
        assert file in (None, os.path.realpath(path))
        return "not there"
    is_inside = os.path.commonpath((real, root)) == root != real
    assert file == (real if is_inside else None)
    return "found" if is_inside else "outside"


def test_a_circle_of_links_hides_no_way_out(tmp_path: Path) -> None:
    write_clip(tmp_path / "secret/a.mp4")
    data = tmp_path / "data"
    data.mkdir()
    (data / "out").symlink_to(tmp_path / "secret")
    (data / "circle").symlink_to("circle")
    for video_path in ("out/a.mp4", "circle/../out/a.mp4"):
        record = make_video_record() | {"video_path": video_path}
        dataset = VideoDataset.load(write_config(data, [record]))
        with pytest.raises(SampleError, match="leads out of the video folder"):
            dataset.video_file(dataset.videos[0])


# --- saving -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["new", "new/deeper", ".", "subset.json", "new/subset.json.gz"])
def test_what_is_saved_is_read_back_equal(tmp_path: Path, name: str) -> None:
    for kind, records in (
        (PairDataset, [make_record("1"), make_record("2", "q") | {"helpfulness": "tie", "é": {"\ud83d": 1}}]),
        (VideoDataset, [make_video_record("p"), make_video_record("q")]),
        (PromptDataset, [make_prompt_record("p"), make_prompt_record("q")]),
    ):
        config = write_config(tmp_path, records, "original.json")
        dataset = kind.load(config)
        before = [dataset[index] for index in range(len(dataset))]
        saved = dataset.save(tmp_path / name)
        assert saved == (tmp_path / name if name.endswith(("json", "gz")) else tmp_path / name / "config.json")
        assert read_json(saved) == records
        assert type(load_any(saved)) is kind
        assert [dataset[index] for index in range(len(dataset))] == before
        content = saved.read_bytes()
        kind.load(saved).save(saved)
        assert saved.read_bytes() == content


def test_saved_paths_lead_to_the_same_clips_where_they_can(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    world = write_world(tmp_path / "world")
    dataset = PairDataset.load(world)
    files = dataset.video_files(dataset.videos)

    # Beside the clips, one folder above them, and beside them but loaded as a folder.
    for path, loaded in (
        (world / "subset.json.gz", {}),
        (tmp_path / "all.json", {}),
        (world, {"config_filename": "again.json"}),
    ):
        saved = dataset.save(path, **loaded)
        again = PairDataset.load(path, **loaded)
        assert again.video_files(again.videos) == files
        by_path = PairDataset.load(saved)
        assert by_path.video_files(by_path.videos) == files
    assert read_json(tmp_path / "all.json")[0]["video_0"]["video_path"] == "world/videos/p/a.mp4"
    assert read_json(world / "subset.json.gz")[0]["video_0"]["video_path"] == "videos/p/a"
    assert not recwarn.list

    # Elsewhere the reader would refuse to leave the folder: it has to be told.
    for path in (tmp_path / "elsewhere", tmp_path / "elsewhere/x.json", tmp_path):
        with pytest.warns(
            UserWarning, match=r"5 of 5 clips are not where its reader looks; load it with video_dir='(.*)'"
        ):
            dataset.save(path)
        again = PairDataset.load(path, video_dir=world / "videos")
        assert again.video_files(again.videos) == files


def test_what_json_has_no_word_for_replaces_no_file(tmp_path: Path) -> None:
    config = write_config(tmp_path, [make_record()])
    before = config.read_bytes()
    for value in (float("nan"), {"deep": [float("inf")]}, {1, 2}):
        with pytest.raises(SampleError, match=r"config\.json: cannot be written, a record is not JSON"):
            write_records(config, [make_record() | {"weight": value}])
        assert config.read_bytes() == before


def test_wrong_places_to_save_to_are_refused(tmp_path: Path) -> None:
    dataset = PairDataset.load(write_world(tmp_path / "world"))
    (tmp_path / "file").touch()
    for arguments, message in (
        ({"path": tmp_path / "x.json", "copy_videos": True}, "copy_videos: expected a folder to copy to as path, got"),
        ({"path": tmp_path / "file"}, "is a file; expected a folder, or a file that ends in .json or .json.gz"),
        ({"path": tmp_path / "x", "config_filename": "x.csv"}, "config_filename: expected a name that ends in .json"),
        ({"path": tmp_path / "x", "config_filename": "../x.json"}, "config_filename: expected a name that ends in .js"),
    ):
        with pytest.raises(ConfigError) as caught:
            dataset.save(**arguments)
        assert message in str(caught.value)
    with (
        pytest.raises(SampleError, match=r"file/x\.json: cannot be written \("),
        pytest.warns(UserWarning, match="5 of 5 clips"),
    ):
        dataset.save(tmp_path / "file/x.json")
    assert not (tmp_path / "x").exists()


# --- copying clips ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("load_path", ["world", "world/config.json"])
def test_copied_clips_are_found_in_the_new_folder(tmp_path: Path, load_path: str) -> None:
    world = write_world(tmp_path / "world")
    dataset = PairDataset.load(tmp_path / load_path)
    saved = dataset.save(tmp_path / "new", "config-train.json.gz", copy_videos=True)
    originals = dataset.video_files(dataset.videos)
    for again in (PairDataset.load(tmp_path / "new", "config-train.json.gz"), PairDataset.load(saved)):
        copies = again.video_files(again.videos)
        assert [file.relative_to(tmp_path / "new/videos") for file in copies] == [
            file.relative_to(world / "videos") for file in originals
        ]
        assert [file.read_bytes() for file in copies] == [file.read_bytes() for file in originals]
        assert again.pairs[0].video_0.video_path == "videos/p/a.mp4"
    assert sum(file.is_file() for file in (tmp_path / "new").rglob("*")) == 6
    assert not list(tmp_path.glob(".*"))
    # Onto itself, nothing changes but the paths that are written out.
    times = [file.stat().st_mtime_ns for file in originals]
    dataset.save(world, "again.json", copy_videos=True)
    assert [file.stat().st_mtime_ns for file in originals] == times


def test_nothing_is_copied_where_a_clip_is_missing_or_another_is_in_its_place(tmp_path: Path) -> None:
    world = write_world(tmp_path / "world")
    dataset = PairDataset.load(world)
    new = tmp_path / "new"

    def refusal() -> str:
        with pytest.raises(SampleError) as caught:
            dataset.save(new, copy_videos=True)
        assert not (new / "config.json").exists()
        assert len(list(new.rglob("*.mp4"))) <= 1
        return str(caught.value)

    (world / "videos/q/a.mp4").rename(tmp_path / "kept.mp4")
    assert refusal().startswith(f"{world}/videos/q/a.mp4: no such file, 1 of 5 clips are missing; nothing was copied")
    (tmp_path / "kept.mp4").rename(world / "videos/q/a.mp4")

    size = (world / "videos/q/a.mp4").stat().st_size
    os.truncate(world / "videos/q/a.mp4", shutil.disk_usage(tmp_path).free + (1 << 30))  # a hole, which takes no space
    assert f"{tmp_path}: 5 clips need " in refusal()
    os.truncate(world / "videos/q/a.mp4", size)

    write_clip(new / "videos/p/c.mp4", num_frames=3, level=200)
    content = (new / "videos/p/c.mp4").read_bytes()
    assert f"{new}/videos/p/c.mp4: is the place of {new}/videos/p/c.mp4 and of {world}/videos/p/c.mp4" in refusal()
    assert (new / "videos/p/c.mp4").read_bytes() == content
    (new / "videos/p/c.mp4").unlink()

    (new / "videos/p/c.mp4").symlink_to(tmp_path / "outside.mp4")
    assert "'p/c.mp4' leads out of the video folder" in refusal()
    (new / "videos/p/c.mp4").unlink()
    (new / "videos/p/c.mp4").symlink_to("b.mp4")  # two names for one file that is not there yet
    assert "videos/p/b.mp4: is the place of" in refusal()
    (new / "videos/p/c.mp4").unlink()
    dataset.save(new, copy_videos=True)
    assert PairDataset.load(new).check_video_integrity() == {}


def test_copying_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    world = write_world(tmp_path / "world")
    big = world / "videos/p/c.mp4"
    big.write_bytes(big.read_bytes() + bytes(1 << 20))
    new = tmp_path / "new"
    code = (
        "import resource, sys; from safe_rlhf_video.data.datasets import PairDataset; "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 19, {resource.RLIM_INFINITY})); "
        "PairDataset.load(sys.argv[1]).save(sys.argv[2], copy_videos=True)"
    )
    done = subprocess.run([sys.executable, "-c", code, world, new], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert f"SampleError: {new}/videos/p/c.mp4: cannot be copied from {big} (File too large)" in done.stderr
    assert sorted(file.name for file in new.rglob("*") if file.is_file()) == ["a.mp4", "b.mp4"]

    inode = (new / "videos/p/a.mp4").stat().st_ino
    (new / "videos/p/.c.mp4.partial").write_bytes(b"what a kill leaves behind")
    dataset = PairDataset.load(world)
    dataset.save(new, copy_videos=True)
    assert (new / "videos/p/a.mp4").stat().st_ino == inode
    assert (new / "videos/p/c.mp4").read_bytes() == big.read_bytes()
    assert not list(new.rglob(".*"))


# --- integrity --------------------------------------------------------------------------------------------------------


def test_unreadable_clips_are_named_with_their_reason(tmp_path: Path) -> None:
    world = write_world(tmp_path / "world")
    clips = world / "videos"
    (clips / "p/b.mp4").write_bytes((clips / "p/b.mp4").read_bytes()[:-300])
    (clips / "q/a.mp4").unlink()
    (clips / "q/a2.mp4").write_text("not a video")
    dataset = PairDataset.load(world)
    report = tmp_path / "reports/quarantine.jsonl"
    unreadable = dataset.check_video_integrity(quarantine=report)
    assert list(unreadable) == ["p/b", "q/a", "q/a2"]
    assert "no such file" in unreadable["q/a"]
    rows = [json.loads(line) for line in report.read_text().splitlines()]
    assert rows == [{"name": name, "error": error} for name, error in unreadable.items()]
    with pytest.raises(ConfigError, match="num_workers"):
        dataset.check_video_integrity(workers=0)


# --- tables -----------------------------------------------------------------------------------------------------------


def test_a_table_says_what_the_samples_say(tmp_path: Path) -> None:
    records = [make_record("1") | {"helpfulness": "tie"}, make_text_record("2", "q")]
    records[1] |= {"helpfulness": None, "sub_preferences": None}
    records[1]["video_0"] |= {"is_safe": None, "video_labels": None}
    dataset = PairDataset.load(write_config(tmp_path, records))
    table = dataset.to_hf()
    assert table.num_rows == 2
    first, second = table[0], table[1]
    assert [row["helpfulness"] for row in (first, second)] == ["tie", None]
    assert first["sub_preferences"] == {
        "instruction_following": "video_0",
        "correctness": None,
        "informativeness": "video_1",
        "aesthetics": "video_0",
    }
    assert set(second["sub_preferences"].values()) == {None}
    assert first["video_0"]["video_path"] == dataset[0]["video_0"]["video_path"]
    assert (second["video_1"]["video_path"], second["video_1"]["response_text"]) == (None, "a video_1")
    assert first["video_1"]["video_labels"] == {key: key == "crime" for key in HARM_LABELS} | {"racism": None}
    assert (second["video_0"]["is_safe"], second["video_0"]["video_labels"]) == (None, None)
    assert json.loads(first["video_0"]["extra"]) == {"seed": 7}
    assert json.loads(first["extra"]) == {"prompt_labels": {"porn": False}}
    assert table.features["video_0"]["video_labels"]["racism"].dtype == "bool"
    assert table.features["harmlessness"].dtype == "string"
    assert dataset.to_hf(absolute_paths=False)[0]["video_0"]["video_path"] == "videos/p/a"

    # Without any row or label the columns have the same types.
    assert PairDataset.load(write_config(tmp_path, [])).to_hf().features == table.features
    table.to_parquet(tmp_path / "table.parquet")
    import datasets

    again = datasets.Dataset.from_parquet(str(tmp_path / "table.parquet"), cache_dir=str(tmp_path / "cache"))
    assert again.features == table.features
    assert again[:] == table[:]


def test_videos_and_prompts_become_tables(tmp_path: Path) -> None:
    videos = VideoDataset.load(write_config(tmp_path, [make_video_record()])).to_hf()
    expected = make_video_record() | {"response_text": None, "extra": '{"info": {"seed": 7}}'}
    del expected["info"]
    assert videos[0] == expected | {"video_path": str(tmp_path.resolve() / "videos/p/a.mp4")}
    prompts = PromptDataset.load(write_config(tmp_path, [make_prompt_record()])).to_hf()
    expected = make_prompt_record()
    expected["extra"] = json.dumps({"source": expected.pop("source")})
    assert prompts[0] == expected


# --- fuzzing and real files -------------------------------------------------------------------------------------------


def mutations(rng: random.Random, content: bytes) -> Iterator[bytes]:
    while True:
        changed = bytearray(content)
        for _ in range(rng.randint(1, 3)):
            start = rng.randrange(len(changed))
            end = min(len(changed), start + rng.choice([1, 1, 2, 8, 64]))
            piece = rng.choice(
                [
                    b"",
                    rng.randbytes(end - start),
                    bytes(changed[start:end]) * 2,
                    b"null",
                    b'"',
                    b"{",
                    b"]",
                    b"1e999",
                    b"\\u0000",
                ]
            )
            changed[start:end] = piece
        yield bytes(changed)


def test_a_mutated_config_is_read_or_refused(tmp_path: Path) -> None:
    rng = random.Random(0)
    sources = [
        [make_record("1"), make_text_record("2", "q")],
        [make_video_record("p"), make_video_record("q")],
        [make_prompt_record("p"), make_prompt_record("q")],
    ]
    messages = []
    for records in sources:
        for compressed in (False, True):
            content = json.dumps(records).encode()
            config = tmp_path / ("config.json.gz" if compressed else "config.json")
            source = mutations(rng, gzip.compress(content, mtime=0) if compressed else content)
            for _ in range(150):
                config.write_bytes(next(source))
                try:
                    dataset = load_any(config)
                    samples = [dataset[index] for index in range(len(dataset))]
                except SampleError as error:
                    messages.append(str(error))
                else:
                    assert samples
    assert 600 < len(messages) < 900
    assert not any("\n" in message for message in messages)


@pytest.mark.skipif(not (SHARED / "realvideo").is_dir(), reason="the real clips are not here")
def test_real_generations_are_loaded_checked_and_copied(tmp_path: Path) -> None:
    pairs = load_any(SHARED / "realvideo/config-pairs.json")
    videos = load_any(SHARED / "realvideo", "config-videos.json")
    assert (type(pairs), type(videos)) == (PairDataset, VideoDataset)
    assert (len(pairs), len(videos), videos.num_prompts) == (24, 52, 31)
    saved = pairs.save(tmp_path / "new", copy_videos=True)
    assert PairDataset.load(saved).check_video_integrity() == {}
    assert videos.to_hf().num_rows == 52


@pytest.mark.skipif(not (SHARED / "seeds").is_dir(), reason="the published description is not here")
def test_harm_labels_have_their_published_names() -> None:
    lines = [line.strip() for line in (SHARED / "seeds/safesora-readme.txt").read_text().splitlines()]
    for label in HARM_LABELS.values():
        assert lines[lines.index(f"- {label.code}:") + 1] == label.published
