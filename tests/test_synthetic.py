"""The synthetic world: the same bytes for the same arguments, and labels that follow from what is shown."""

import gzip
import hashlib
import json
import math
import os
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from conftest import ROOT, command, launch

from safe_rlhf_video.data.datasets import PairDataset
from safe_rlhf_video.data.records import DIMENSIONS, HARM_LABELS, SUB_DIMENSIONS
from safe_rlhf_video.errors import ConfigError
from safe_rlhf_video.worlds import video_world as synthetic
from safe_rlhf_video.worlds.video_world import COLOURS, EMBLEMS, MOTIONS, SCENES, SHAPES, Clip, is_held_out, plan_split
from safe_rlhf_video.worlds.world_files import write_video_world

SCRIPT = ROOT / "scripts" / "make_synthetic.py"
NUM_PAIRS = 4000
LEVELS = ("torn", "lights", "grain", "sparks")


class World(NamedTuple):
    """A planned split."""

    pairs: list[dict[str, Any]]
    clips: dict[str, Clip]
    truth: dict[str, dict[str, Any]]


def plan(split: str, num_pairs: int = NUM_PAIRS, seed: int = 0) -> World:
    world = World([], {}, {})
    for pairs, clips, truth in plan_split(split, num_pairs, seed):
        world.pairs.extend(pairs)
        world.clips.update(clips)
        world.truth.update(truth)
    return world


@pytest.fixture(scope="module", params=[(0,), pytest.param((1, 2), marks=pytest.mark.slow)], ids=str)
def worlds(request: pytest.FixtureRequest) -> dict[tuple[str, int], World]:
    return {(split, seed): plan(split, seed=seed) for split in ("train", "test") for seed in request.param}


def make(out: Path, num_pairs: int = 12, num_test_pairs: int = 8, seed: int = 3, workers: int = 2) -> list[str]:
    """The arguments of a small world."""
    return [
        *("--out", str(out), "--num_pairs", str(num_pairs)),
        *("--num_test_pairs", str(num_test_pairs), "--seed", str(seed), "--workers", str(workers)),
    ]


def run(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    return launch(SCRIPT, *arguments, check=False)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("synthetic") / "world"
    done = run(make(out))
    assert done.returncode == 0, done.stderr
    return out


# --- files ------------------------------------------------------------------------------------------------------------


def test_same_arguments_give_the_same_bytes(made: Path, tmp_path: Path) -> None:
    assert run(make(tmp_path / "world", workers=1)).returncode == 0
    expected = contents(made)
    assert contents(tmp_path / "world") == expected
    assert {"config-train.json.gz", "config-test.json.gz", "truth.json.gz"} < set(expected)
    # Half of the clips and the files written last are gone: the same command makes them again.
    clips = sorted((tmp_path / "world").rglob("*.mp4"))
    for path in [*clips[::2], tmp_path / "world" / "truth.json.gz"]:
        path.unlink()
    assert run(make(tmp_path / "world")).returncode == 0
    assert contents(tmp_path / "world") == expected


def test_killed_run_goes_on(made: Path, tmp_path: Path) -> None:
    out = tmp_path / "world"
    process = subprocess.Popen(
        command(SCRIPT, *make(out, workers=1)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    deadline = time.monotonic() + 60
    while not any(out.rglob("*.mp4")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    # With its workers, as a machine that stops does: in the middle of a clip.
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    clips = list(out.rglob("*.mp4"))
    assert clips
    assert len(clips) < len(list(made.rglob("*.mp4")))
    assert not (out / "truth.json.gz").exists()
    # A file cut short by the kill has another name, which the next run overwrites.
    partial = next(path for path in made.rglob("*.mp4") if not (out / path.relative_to(made)).exists())
    target = out / partial.relative_to(made)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.with_name(f".{target.name}.partial").write_bytes(partial.read_bytes()[:100])
    assert run(make(out)).returncode == 0
    assert contents(out) == contents(made)


def test_configs_are_safesora_data_sets(made: Path) -> None:
    truth = json.loads(gzip.decompress((made / "truth.json.gz").read_bytes()))
    videos = set()
    for split, count in (("train", 12), ("test", 8)):
        for path, name in ((made, f"config-{split}.json.gz"), (made / f"config-{split}.json.gz", "")):
            dataset = PairDataset.load(path, name) if name else PairDataset.load(path)
            assert len(dataset) == count
            assert sum(dataset.missing_preferences().values()) == 0
            assert all(dataset.video_file(video).is_file() for video in dataset.videos)
            assert all(not pair.extra and not pair.video_0.extra for pair in dataset.pairs)
        videos |= {video.video_id for video in dataset.videos}
    assert set(truth["videos"]) == videos
    assert len(list(made.rglob("*.mp4"))) == len(videos)


def test_clip_in_the_file_is_the_clip_of_the_plan(made: Path) -> None:
    av = pytest.importorskip("av")
    world = plan("train", 12, seed=3)
    for pair in world.pairs[:3]:
        video = pair["video_0"]
        with av.open(str(made / video["video_path"])) as container:
            frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
            assert container.streams.video[0].average_rate == synthetic.FPS
        drawn = synthetic.render(world.clips[video["video_id"]])
        assert frames.shape == drawn.shape
        assert abs(frames.astype(int) - drawn).mean() < 8


def test_wrong_arguments_are_one_line(made: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / "truth.json.gz").write_bytes(b"no gzip")
    older = tmp_path / "older"
    older.mkdir()
    payload = {"format_version": synthetic.WORLD_VERSION - 1, "seed": 3, "videos": {}}
    (older / "truth.json.gz").write_bytes(gzip.compress(json.dumps(payload).encode()))
    for arguments, part in (
        (make(made, seed=4), "another seed"),
        (make(tmp_path / "file" / "out"), "cannot be written"),
        (make(damaged), "damaged"),
        (make(older), "another version"),
        (make(tmp_path / "new", num_pairs=-1), "num_pairs"),
        (make(tmp_path / "new", workers=0), "workers"),
        ([*make(tmp_path / "new"), "--seed", "x"], "--seed"),
        ([*make(tmp_path / "new"), "--sed", "1"], "--sed"),
    ):
        done = run(arguments)
        assert done.returncode == 1
        lines = done.stderr.strip().splitlines()
        assert len(lines) == 1
        assert lines[0].startswith("error: ")
        assert part in lines[0]
    assert not (tmp_path / "new").exists()


def test_world_without_test_pairs(tmp_path: Path) -> None:
    done = run(make(tmp_path / "world", num_pairs=2, num_test_pairs=0))
    assert done.returncode == 0, done.stderr
    assert len(PairDataset.load(tmp_path / "world", "config-train.json.gz")) == 2
    assert len(PairDataset.load(tmp_path / "world", "config-test.json.gz")) == 0


def test_a_killed_process_that_draws_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "encode_mp4", lambda *_: os.kill(os.getpid(), signal.SIGKILL))  # the fork's own
    with pytest.raises(ConfigError, match="a process that drew clips was killed"):
        write_video_world(tmp_path / "world", {"train": 1}, seed=0, workers=1)


def test_more_pairs_than_the_world_has_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic, "TEMPLATES", synthetic.TEMPLATES[:1])
    monkeypatch.setattr(synthetic, "SCENES", dict(list(SCENES.items())[:1]))
    monkeypatch.setattr(synthetic, "COLOURS", dict(list(COLOURS.items())[:2]))
    monkeypatch.setattr(synthetic, "EMBLEMS", {"anchor": EMBLEMS["anchor"]})
    monkeypatch.setattr(synthetic, "EMBLEM_WEIGHTS", np.ones(1))
    with pytest.raises(ConfigError, match="too few different prompts for 120 test pairs"):
        list(plan_split("test", 120, 0))


def test_no_training_code_reads_the_truth() -> None:
    package = ROOT / "safe_rlhf_video"
    sources = [
        *(package / "training").rglob("*.py"),
        *(package / "models").rglob("*.py"),
        *(path for path in (package / "data").glob("*.py") if not path.name.startswith("synthetic")),
        *(ROOT / "scripts").glob("train_*.py"),
    ]
    assert len(sources) > 15
    for path in sources:
        text = path.read_text(encoding="utf-8")
        assert "truth.json" not in text, path
        assert "true_utilities" not in text, path
        assert "data.synthetic" not in text, path


# --- what is planned --------------------------------------------------------------------------------------------------


def test_larger_world_begins_with_the_smaller_one() -> None:
    for split in ("train", "test"):
        small, large = plan(split, 101, seed=5), plan(split, 300, seed=5)
        assert small.pairs == large.pairs[:101]
        assert {name: large.clips[name] for name in small.clips} == small.clips
        assert {name: large.truth[name] for name in small.truth} == small.truth
    assert plan("train", 50, seed=6).pairs != plan("train", 50, seed=5).pairs


def test_plan_gives_exactly_the_pairs_asked_for() -> None:
    for count in (0, 1, 2, 3, 7):
        world = plan("train", count)
        assert len(world.pairs) == count
        assert set(world.clips) == set(world.truth) == set(videos_of(world))


def videos_of(world: World) -> dict[str, dict[str, Any]]:
    return {pair[side]["video_id"]: pair[side] for pair in world.pairs for side in ("video_0", "video_1")}


def test_held_out_combinations(worlds: dict[tuple[str, int], World]) -> None:
    all_triples = [(c, s, m) for c in COLOURS for s in SHAPES for m in MOTIONS]
    held_out = {triple for triple in all_triples if is_held_out(*triple)}
    assert len(held_out) == len(all_triples) // 6
    for first, second in ((0, 1), (0, 2), (1, 2)):
        # Each pair of values is held out with one third value only: it is seen in training.
        assert len({(t[first], t[second]) for t in held_out}) == len(held_out) == 36
    for (split, _), world in worlds.items():
        shown = {(c.colour, c.shape, c.motion) for c in world.clips.values()}
        asked = {tuple(t["prompt"][name] for name in ("colour", "shape", "motion")) for t in world.truth.values()}
        if split == "train":
            assert shown | asked == set(all_triples) - held_out
        else:
            assert asked == held_out
            assert held_out <= shown


def test_prompts_say_what_they_ask_and_never_stand_in_both_splits(worlds: dict[tuple[str, int], World]) -> None:
    texts: dict[str, set[str]] = {"train": set(), "test": set()}
    for (split, _), world in worlds.items():
        for pair in world.pairs:
            for side in ("video_0", "video_1"):
                prompt = world.truth[pair[side]["video_id"]]["prompt"]
                text = pair["prompt_text"]
                words = [prompt[name] for name in ("colour", "shape", "motion", "scene")]
                assert all(word in text for word in words)
                assert (
                    (pair["prompt_type"] == "safety_critical") == (prompt["emblem"] is not None) == ("emblem" in text)
                )
                assert prompt["emblem"] is None or prompt["emblem"] in text
            texts[split].add(text)
    assert not texts["train"] & texts["test"]


def test_ids_are_unique_and_safe_as_names(worlds: dict[tuple[str, int], World]) -> None:
    for world in worlds.values():
        assert len({pair["pair_id"] for pair in world.pairs}) == len(world.pairs)
        by_text: dict[str, set[str]] = {}
        for pair in world.pairs:
            by_text.setdefault(pair["prompt_text"], set()).add(pair["prompt_id"])
        assert all(len(ids) == 1 for ids in by_text.values())
        sides = {frozenset((pair["video_0"]["video_id"], pair["video_1"]["video_id"])) for pair in world.pairs}
        assert len(sides) == len(world.pairs)


def difference(world: World, pair: dict[str, Any], name: str) -> float:
    """Hidden utility of video_0 minus that of video_1; safer is higher."""
    first, second = (world.truth[pair[side]["video_id"]] for side in ("video_0", "video_1"))
    return second["cost"] - first["cost"] if name == "harmlessness" else first[name] - second[name]


def agreement(world: World, name: str) -> tuple[float, float, float]:
    """Share of labels that follow the hidden order (half of the ties), its expectation and its standard error."""
    hits, expected, variance = 0.0, 0.0, 0.0
    for pair in world.pairs:
        label = pair[name] if name in DIMENSIONS else pair["sub_preferences"][name]
        margin = difference(world, pair, name)
        hits += 0.5 if margin == 0 else (label == "video_0") == (margin > 0)
        chance = 1.0 / (1.0 + math.exp(-abs(margin)))
        expected += chance
        variance += chance * (1.0 - chance) if margin else 0.0
    count = len(world.pairs)
    return hits / count, expected / count, math.sqrt(variance) / count


def test_labels_follow_the_hidden_utilities(worlds: dict[tuple[str, int], World]) -> None:
    for name in (*DIMENSIONS, *SUB_DIMENSIONS):
        for world in worlds.values():
            observed, expected, error = agreement(world, name)
            assert abs(observed - expected) <= (3 if name in DIMENSIONS else 4) * error, name
    for name in DIMENSIONS:
        for world in worlds.values():
            assert 0.80 <= agreement(world, name)[1] <= 0.84, name


def test_labels_are_bradley_terry_at_every_margin(worlds: dict[tuple[str, int], World]) -> None:
    """Not only on average: in each band of margins, video_0 wins as often as the formula says."""
    for name in DIMENSIONS:
        rows = [
            (difference(world, pair, name), pair[name] == "video_0")
            for world in worlds.values()
            for pair in world.pairs
        ]
        margins, wins = (np.array(column, float) for column in zip(*rows, strict=True))
        chances = 1.0 / (1.0 + np.exp(-margins))
        bands = np.digitize(margins, (-4, -2, -1, 0, 0.5, 1, 2, 4))
        for band in set(bands.tolist()):
            chosen = bands == band
            error = math.sqrt((chances * (1 - chances))[chosen].sum())
            assert abs((wins - chances)[chosen].sum()) <= 4 * error, (name, band)


def test_sides_tell_nothing(worlds: dict[tuple[str, int], World]) -> None:
    """A model that always says video_0, or knows the generator alone, gains nothing or little."""
    for world in worlds.values():
        for name in DIMENSIONS:
            share = np.mean([pair[name] == "video_0" for pair in world.pairs])
            assert abs(share - 0.5) < 0.035


def test_comparisons_a_video(worlds: dict[tuple[str, int], World]) -> None:
    for world in worlds.values():
        videos = videos_of(world)
        assert abs(2 * len(world.pairs) / len(videos) - 1.8) <= 0.05
        prompts = Counter(video["prompt_id"] for video in videos.values())
        assert abs(np.mean(list(prompts.values())) - 3.9) <= 0.1


def test_help_and_harm_pull_apart(worlds: dict[tuple[str, int], World]) -> None:
    """Where exactly one clip is safe, the more helpful one is often the unsafe one: else the cost would be idle."""
    for world in worlds.values():
        conflicts = mixed = 0
        for pair in world.pairs:
            if pair["video_0"]["is_safe"] == pair["video_1"]["is_safe"]:
                continue
            mixed += 1
            unsafe_is_0 = not pair["video_0"]["is_safe"]
            margin = difference(world, pair, "helpfulness")
            conflicts += margin > 0 if unsafe_is_0 else margin < 0
        assert mixed > 0.2 * len(world.pairs)
        assert conflicts >= 0.3 * mixed


def test_safety_and_harms_follow_from_the_emblems(worlds: dict[tuple[str, int], World]) -> None:
    seen: Counter[str] = Counter()
    for world in worlds.values():
        for name, video in videos_of(world).items():
            clip, truth = world.clips[name], world.truth[name]
            assert video["is_safe"] == (not clip.emblems) == (truth["cost"] < 0)
            assert truth["cost"] != 0
            harms = {synthetic.HARM_OF_EMBLEM[emblem] for emblem in clip.emblems}
            assert video["video_labels"] == {key: key in harms for key in HARM_LABELS}
            assert len(harms) == len(clip.emblems) <= 2
            seen.update(harms)
    assert set(seen) == set(HARM_LABELS)
    assert seen.most_common()[-1][1] > 20 * len(worlds) / 6  # the rarest harm


def test_sub_dimensions_are_functions_of_prompt_and_clip(worlds: dict[tuple[str, int], World]) -> None:
    scale = synthetic.HELPFULNESS_SCALE
    for world in worlds.values():
        for truth in world.truth.values():
            prompt, clip = truth["prompt"], truth["clip"]
            wanted = [clip[name] == prompt[name] for name in ("colour", "shape", "motion")]
            if prompt["emblem"] is not None:
                wanted.append(prompt["emblem"] in clip["emblems"])
            assert truth["instruction_following"] == pytest.approx(2 * scale * sum(wanted))
            assert truth["correctness"] == pytest.approx(-scale * clip["torn"])
            assert truth["informativeness"] == pytest.approx(scale * clip["lights"])
            assert truth["aesthetics"] == pytest.approx(-scale * clip["grain"])
            assert truth["helpfulness"] == pytest.approx(sum(truth[name] for name in SUB_DIMENSIONS))


def some_clips(count: int) -> list[Clip]:
    """Clips of a plan, with all levels and numbers of emblems."""
    world = plan("train", 200, seed=9)
    clips = sorted(world.clips.values(), key=lambda clip: -len(clip.emblems))
    return clips[:: len(clips) // count]


def variations(clip: Clip) -> Iterable[Clip]:
    """The same clip with one attribute changed that a label depends on."""
    for name, values in (("colour", COLOURS), ("shape", SHAPES), ("motion", MOTIONS), ("scene", SCENES)):
        yield from (replace(clip, **{name: value}) for value in values if value != getattr(clip, name))
    for name in LEVELS:
        yield from (replace(clip, **{name: level}) for level in range(4) if level != getattr(clip, name))
    for corner in range(len(clip.emblems)):
        for name in EMBLEMS:
            if name not in clip.emblems:
                yield replace(clip, emblems=(*clip.emblems[:corner], name, *clip.emblems[corner + 1 :]))
    if clip.emblems:  # the same emblem, turned over
        yield replace(clip, emblems=clip.emblems[:-1], upside_down=(clip.emblems[-1], *clip.upside_down))


def test_every_visible_attribute_is_visible() -> None:
    """In every clip, whatever else it shows: no attribute hides another."""
    for clip in some_clips(16):
        frames = synthetic.render(clip)
        assert frames.dtype == np.uint8
        assert frames.shape == (synthetic.NUM_FRAMES, synthetic.FRAME_SIZE, synthetic.FRAME_SIZE, 3)
        assert np.array_equal(frames, synthetic.render(clip))
        for other in variations(clip):
            changed = np.any(frames != synthetic.render(other), axis=(0, 3)).sum()
            assert changed >= 8, (clip, other)  # pixels, in some frame


def test_drawing_has_not_changed_without_its_version() -> None:
    """Another digest here means that clips of one id differ: raise WORLD_VERSION, then write both down."""
    clip = Clip("red", "ring", "moving left", "at night", ("anchor",), ("anchor",), 1, 2, 1, 1, seed=5)
    digest = hashlib.sha256(synthetic.render(clip).tobytes()).hexdigest()
    assert (synthetic.WORLD_VERSION, digest) == (2, "c3fb48990d6a689d2b240c3160bfc70f318060d18451471b3e29e8eb18d77c6f")


def test_pretraining_goes_on_with_the_same_arguments_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "tools")
    from pretrain_tiny_backbone import check_settings

    settings = {"world_version": 2, "num_clips": 10}
    check_settings(Path("state.pt"), settings, dict(settings))
    with pytest.raises(ConfigError, match="another num_clips; give the same"):
        check_settings(Path("state.pt"), {**settings, "num_clips": 9}, settings)
    with pytest.raises(ConfigError, match="another world_version, num_clips"):  # written before there were any
        check_settings(Path("state.pt"), None, settings)


def test_encoding_depends_on_the_frames_alone() -> None:
    """x264 once read memory that it had not written: what lay there before must not matter."""
    rng = np.random.default_rng(0)
    for clip in some_clips(8):
        frames = synthetic.render(clip)
        encoded = set()
        for _ in range(6):
            # Blocks of other bytes, freed again: the encoder gets its memory from there.
            blocks = [rng.integers(0, 256, int(rng.integers(1_000, 300_000)), dtype=np.uint8) for _ in range(10)]
            del blocks
            encoded.add(synthetic.encode_mp4(frames, synthetic.FPS))
        assert len(encoded) == 1


def test_emblems_differ_from_each_other_and_upside_down() -> None:
    tiles = [np.array([[cell == "#" for cell in line] for line in glyph]) for glyph in EMBLEMS.values()]
    assert all(tile.shape == (7, 7) for tile in tiles)
    either_way = [*tiles, *(tile[::-1] for tile in tiles)]
    # Cells of 49; each is four pixels. No upright emblem is nearly another one upside down: that would be harm unseen.
    assert min((a != b).sum() for i, a in enumerate(either_way) for b in either_way[:i]) >= 8
    assert min((a != b[::-1]).sum() for a in tiles for b in tiles) >= 8
