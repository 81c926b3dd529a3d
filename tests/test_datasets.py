"""Reading SafeSora's pair files: every wrong record, every damaged file and every path that leads astray is named."""

import copy
from pathlib import Path
from typing import Any

import pytest
from safesora_records import change, make_record, write_clip, write_config

from safe_rlhf_video.data.datasets import PairDataset
from safe_rlhf_video.data.records import HARM_LABELS, parse_pair
from safe_rlhf_video.errors import SampleError
from safe_rlhf_video.video.decoding import read_video
from safe_rlhf_video.video.sampling import Sampling

WHERE = "config.json row 17"


# --- records ----------------------------------------------------------------------------------------------------------


def test_a_record_is_read_whole() -> None:
    pair = parse_pair(make_record(), WHERE)
    assert pair.preferences == {
        "helpfulness": 0,
        "harmlessness": 1,
        "instruction_following": 0,
        "correctness": None,
        "informativeness": 1,
        "aesthetics": 0,
    }
    assert pair.extra == {"prompt_labels": {"porn": False}}
    assert (pair.video_1.prompt_id, pair.video_1.video_id, pair.video_1.is_safe) == ("p", "b", True)
    assert pair.video_0.extra == {"seed": 7}
    assert pair.video_0.harm_labels is not None
    assert "racism" not in pair.video_0.harm_labels
    assert [key for key, applies in pair.video_0.harm_labels.items() if applies] == ["crime"]


def test_harm_labels_cover_the_published_codes() -> None:
    assert list(HARM_LABELS)[:3] == ["porn", "violence", "hate"]
    assert sorted(label.code for label in HARM_LABELS.values()) == sorted(f"S{number}" for number in range(1, 13))
    assert HARM_LABELS["contraband"].published == "Drug, Weapons, Substance Abuse"


def test_labels_may_be_null_or_missing() -> None:
    record = make_record()
    for name in ("video_0", "video_1"):
        record[name] |= dict.fromkeys(("is_safe", "video_labels", "generated_from", "video_text", "prompt_id"))
    record |= dict.fromkeys(("helpfulness", "sub_preferences", "prompt_type"))
    del record["harmlessness"]
    pair = parse_pair(record, WHERE)
    assert set(pair.preferences.values()) == {None}
    assert (pair.video_0.is_safe, pair.video_0.harm_labels, pair.video_0.generated_from) == (None, None, None)


def test_both_names_of_informativeness_are_read_and_unknown_names_are_kept() -> None:
    record = make_record()
    record["sub_preferences"] |= {"informativeness": "video_1", "novelty": "video_0"}
    record["video_0"]["video_labels"]["spam"] = True
    pair = parse_pair(record, WHERE)
    assert pair.preferences["informativeness"] == 1
    assert pair.extra["sub_preferences"] == {"novelty": "video_0"}
    assert pair.video_0.extra == {"seed": 7, "video_labels": {"spam": True}}
    record["sub_preferences"]["informativeness"] = "video_0"
    with pytest.raises(
        SampleError,
        match=r"field sub_preferences\.information: expected 'video_0' as in sub_preferences\.inform",
    ):
        parse_pair(record, WHERE)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("pair_id", 5, "field pair_id: expected a string, got 5"),
        ("prompt_text", None, "field prompt_text: expected a string, got None"),
        ("prompt_type", 1, "field prompt_type: expected a string or null, got 1"),
        ("prompt_id", "", "field prompt_id: expected a non-empty string, got ''"),
        ("prompt_id", "../p", "field prompt_id: expected a plain name without '/', '\\', '..' or NUL, got '../p'"),
        ("video_0.video_id", "..", "field video_0.video_id: expected a plain name without"),
        ("video_1.video_id", "a\\b", "field video_1.video_id: expected a plain name without"),
        ("video_1.video_id", "a\0b", "field video_1.video_id: expected a plain name without"),
        ("video_1.video_id", "a", "field video_1.video_id: expected another video than video_0, got 'a'"),
        ("video_1.video_id", "é" * 121, "field video_1.video_id: expected a name of at most 240 bytes, got 'ééé"),
        (
            "video_1.video_path",
            "a/" + "x" * 256,
            "field video_1.video_path: expected a path of at most 4096 bytes, 255",
        ),
        ("video_1.video_path", "a/" * 2049, "field video_1.video_path: expected a path of at most 4096 bytes, 255"),
        ("video_0.prompt_id", "q", "field video_0.prompt_id: expected the pair's prompt_id 'p', got 'q'"),
        ("video_0.video_path", "a\0b", "field video_0.video_path: expected a path without NUL characters"),
        ("video_0.is_safe", "yes", "field video_0.is_safe: expected true, false or null, got 'yes'"),
        ("video_0.is_safe", 1, "field video_0.is_safe: expected true, false or null, got 1"),
        ("video_1.video_labels", ["crime"], "field video_1.video_labels: expected an object or null, got ['crime']"),
        ("video_1.video_labels.hate", 1, "field video_1.video_labels.hate: expected true, false or null, got 1"),
        ("video_1.generated_from", 3, "field video_1.generated_from: expected a string or null, got 3"),
        ("video_1", None, "field video_1: expected an object, got None"),
        ("helpfulness", "video_2", "field helpfulness: expected 'video_0', 'video_1', 'tie' or null, got 'video_2'"),
        ("harmlessness", 0, "field harmlessness: expected 'video_0', 'video_1', 'tie' or null, got 0"),
        ("sub_preferences", [], "field sub_preferences: expected an object or null, got []"),
        (
            "sub_preferences.aesthetics",
            "v",
            "field sub_preferences.aesthetics: expected 'video_0', 'video_1', 'tie' or null, got 'v'",
        ),
    ],
)
def test_a_wrong_field_is_named(field: str, value: Any, message: str) -> None:
    record = make_record()
    change(field, value)(record)
    with pytest.raises(SampleError) as caught:
        parse_pair(record, WHERE)
    assert str(caught.value).startswith(f"{WHERE} {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "field", ["pair_id", "prompt_id", "prompt_text", "video_0", "video_1.video_id", "video_0.video_path"]
)
def test_a_missing_field_is_named(field: str) -> None:
    record = make_record()
    *parents, key = field.split(".")
    del (record[parents[0]] if parents else record)[key]
    with pytest.raises(SampleError, match=rf"^{WHERE} field {field}: missing, expected"):
        parse_pair(record, WHERE)
    with pytest.raises(SampleError, match=rf"^{WHERE}: expected an object, got \[1\]"):
        parse_pair([1], WHERE)


# --- the data set -----------------------------------------------------------------------------------------------------


def test_counts_and_distinct_videos(tmp_path: Path) -> None:
    records = [make_record("1", "p", ("a", "b")), make_record("2", "p", ("b", "c")), make_record("3", "q", ("a", "b"))]
    records[0]["video_1"]["is_safe"] = None
    records[1]["video_0"]["is_safe"] = False
    records[2]["helpfulness"] = None
    dataset = PairDataset.load(write_config(tmp_path, records, "config-train.json.gz"))
    assert (len(dataset), dataset.num_pairs, dataset.num_prompts, dataset.num_videos) == (3, 3, 2, 5)
    assert [(video.prompt_id, video.video_id) for video in dataset.videos] == [
        ("p", "a"),
        ("p", "b"),
        ("p", "c"),
        ("q", "a"),
        ("q", "b"),
    ]
    assert dataset.videos[1].is_safe is False
    assert dataset.pairs[0].video_1.is_safe is None
    missing = dataset.missing_preferences()
    assert (missing["helpfulness"], missing["harmlessness"], missing["correctness"]) == (1, 0, 3)


def test_the_three_rules_for_where_a_clip_lies(tmp_path: Path) -> None:
    record = make_record()
    record["video_0"]["video_path"] = "elsewhere/a.webm"
    config = write_config(tmp_path, [record])
    as_read = copy.deepcopy(record)

    def paths(dataset: PairDataset) -> list[Path]:
        sample = dataset[0]
        found = [Path(sample[name].pop("video_path")) for name in ("video_0", "video_1")]
        expected = copy.deepcopy(as_read)
        for name in ("video_0", "video_1"):
            del expected[name]["video_path"]
        assert sample == expected
        return found

    folder = tmp_path.resolve()
    assert paths(PairDataset.load(tmp_path)) == [folder / "videos/p/a.mp4", folder / "videos/p/b.mp4"]
    assert paths(PairDataset.load(config, video_dir=tmp_path / "x")) == [folder / "x/p/a.mp4", folder / "x/p/b.mp4"]
    as_written = PairDataset.load(config)
    assert paths(as_written) == [folder / "elsewhere/a.webm", folder / "videos/p/b.mp4"]
    # A clip that really has no ending is taken as it is.
    write_clip(tmp_path / "videos/p/b.mp4")
    (tmp_path / "videos/p/b.mp4").rename(tmp_path / "videos/p/b")
    assert paths(as_written) == [folder / "elsewhere/a.webm", folder / "videos/p/b"]
    with pytest.raises(IndexError):
        as_written[1]
    with pytest.raises(TypeError, match="one number, no slice"):
        as_written[:1]


def test_a_linked_video_folder_is_fine_and_a_clip_that_leads_out_of_it_is_refused(tmp_path: Path) -> None:
    store = tmp_path / "store"
    write_clip(store / "p/a.mp4")
    write_clip(tmp_path / "secret.mp4")
    data = tmp_path / "data"
    data.mkdir()
    (data / "videos").symlink_to(store)
    (store / "p/b.mp4").symlink_to(tmp_path / "secret.mp4")
    config = write_config(data, [make_record()])
    dataset = PairDataset.load(data)
    video = dataset.pairs[0].video_0
    assert dataset.video_file(video) == (store / "p/a.mp4").resolve()
    assert len(read_video(dataset.video_file(video), Sampling()).frames) == 1
    with pytest.raises(
        SampleError, match=r"^/.*/data/config\.json video b of prompt p field video_path: 'p/b\.mp4' leads out of"
    ):
        dataset.video_file(dataset.pairs[0].video_1)
    with pytest.raises(SampleError, match="leads out of the video folder"):
        dataset[0]

    # As written, relative to the config: its folder is the limit, a sibling with the same beginning is outside.
    write_clip(tmp_path / "data-2/a.mp4")
    write_clip(data / "inside.mp4")
    for video_path in ("../secret.mp4", "videos/../../secret.mp4", str(tmp_path / "data-2/a.mp4"), "/dev/zero"):
        record = make_record()
        record["video_0"]["video_path"] = video_path
        dataset = PairDataset.load(write_config(data, [record]))
        with pytest.raises(SampleError) as caught:
            dataset.video_file(dataset.pairs[0].video_0)
        assert f"{video_path!r}"[:-1] in str(caught.value)
        assert "leads out of the video folder" in str(caught.value)
    record["video_0"]["video_path"] = str(data / "inside.mp4")
    dataset = PairDataset.load(write_config(data, [record]))
    assert dataset.video_file(dataset.pairs[0].video_0) == (data / "inside.mp4").resolve()
    assert config.exists()


def test_damaged_files_are_named(tmp_path: Path) -> None:
    whole = write_config(tmp_path, [make_record()], "config-train.json.gz")
    (tmp_path / "cut.json.gz").write_bytes(whole.read_bytes()[:-20])
    (tmp_path / "plain.json.gz").write_text("[]")
    (tmp_path / "comma.json").write_text('[\n  {"pair_id": "x",}\n]')
    (tmp_path / "latin.json").write_bytes('["é"]'.encode("latin-1"))
    (tmp_path / "deep.json").write_text("[" * 200_000)
    (tmp_path / "object.json").write_text("{}")
    (tmp_path / "empty.json").touch()
    (tmp_path / "pairs.csv").touch()
    (tmp_path / "no_config").mkdir()
    for name, message in {
        "cut.json.gz": "not a whole gzip file (",
        "plain.json.gz": "not a whole gzip file (Not a gzipped file",
        "comma.json": "not valid JSON at line 2 column",
        "latin.json": "not UTF-8 text at byte 2",
        "deep.json": "nested too deeply",
        "object.json": "expected a list of records, got JSON of type dict",
        "empty.json": "not valid JSON at column 1",
        "pairs.csv": "expected a file that ends in .json or .json.gz",
        "missing.json": f"no such file or folder; {tmp_path} holds comma.json, config-train.json.gz, cut.json.gz, deep",
        "no_folder/x.json": f"no such file or folder; the folder {tmp_path}/no_folder does not exist either",
    }.items():
        with pytest.raises(SampleError) as caught:
            PairDataset.load(tmp_path / name)
        assert str(caught.value).startswith(f"{tmp_path / name}: {message}")
        assert "\n" not in str(caught.value)
    with pytest.raises(SampleError, match=r"config\.json: no such file .* holds no \.json or \.json\.gz file"):
        PairDataset.load(tmp_path / "no_config")
    with pytest.raises(SampleError, match=r"config\.json: no such file .* holds .*config-train\.json\.gz.*: name one"):
        PairDataset.load(tmp_path)
    assert len(PairDataset.load(tmp_path, config_filename="config-train.json.gz")) == 1


def test_records_that_contradict_each_other_are_named(tmp_path: Path) -> None:
    records = [make_record("1"), make_record("2", "q"), make_record("1", "r")]
    with pytest.raises(SampleError, match=r"^/.*/config\.json row 2 field pair_id: '1' is the id of row 0 too"):
        PairDataset.load(write_config(tmp_path, records))
    records = [make_record("1"), make_record("2", "q"), make_record("3")]
    records[2]["prompt_text"] = "a dog"
    with pytest.raises(
        SampleError, match=r"^/.*/config\.json row 2 field prompt_text: differs from row 0 of the same prom"
    ):
        PairDataset.load(write_config(tmp_path, records))
    records[2] = make_record("3")
    records[2]["video_1"]["video_path"] = "videos/p/c"
    path = write_config(tmp_path, records)
    with pytest.raises(
        SampleError,
        match=r"^/.*/config\.json row 2 field video_1\.video_path: 'videos/p/c' differs from '.*b' in row 0",
    ):
        PairDataset.load(path)
    assert PairDataset.load(path, video_dir=tmp_path).num_videos == 4  # the path is not what finds the clip
    records[2] = make_record("3", "r")
    records[2]["video_1"]["video_path"] = records[2]["video_0"]["video_path"]
    path = write_config(tmp_path, records)
    with pytest.raises(
        SampleError, match=r"row 2 field video_1\.video_path: 'videos/r/a' is that of video_0 too, and a clip compared"
    ):
        PairDataset.load(path)
    assert PairDataset.load(tmp_path).num_videos == 6
    records[2] = make_record("3")
    records[2]["video_0"] |= {"is_safe": False, "generated_from": "another generator"}
    assert PairDataset.load(write_config(tmp_path, records)).num_videos == 4
