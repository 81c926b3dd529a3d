"""Scorer, PairScore and score_pair on small untrained models."""

import itertools
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image
from small_models import JOINT, noise_video, one_line, write_model, write_reward_and_cost

import safe_rlhf_video
from safe_rlhf_video import lagrangian
from safe_rlhf_video.errors import CheckpointError, ConfigError, SafeRLHFVideoError, SampleError, VideoDecodeError
from safe_rlhf_video.models.record import read_record
from safe_rlhf_video.responses import TextResponse
from safe_rlhf_video.scoring import scorer as scorer_module
from safe_rlhf_video.scoring.decisions import PairScore, TradeOff, judge_pair, judge_ranking
from safe_rlhf_video.scoring.policy_reward import LagrangianReward
from safe_rlhf_video.scoring.score_many import ScoreRequest, Source, raise_unreadable, score_many
from safe_rlhf_video.scoring.scorer import Scorer
from safe_rlhf_video.stats.credit import TIE_TOLERANCE
from safe_rlhf_video.video.sampling import Video

PROMPT = "a red circle moving left at night"
FPS = 8


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_reward_and_cost(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def scorer(folders: tuple[Path, Path]) -> Iterator[Scorer]:
    loaded = Scorer.from_pretrained(*folders, device="cpu", workers=1)
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Path], list[np.ndarray]]:
    """Three lossless clips of different sizes and lengths, and their frames."""
    base = tmp_path_factory.mktemp("clips")
    paths, arrays = [], []
    for number, (num_frames, height, width) in enumerate(((9, 32, 48), (4, 48, 48), (1, 16, 16))):
        frames = noise_video(num_frames, height, width, number).frames
        paths.append(base / f"{number}.mkv")
        with av.open(str(paths[-1]), "w") as container:
            stream = container.add_stream("ffv1", rate=FPS)
            stream.height, stream.width, stream.pix_fmt = height, width, "bgr0"
            for frame in frames:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
            container.mux(stream.encode(None))
        arrays.append(frames)
    return paths, arrays


def mirrored(judged: PairScore) -> PairScore:
    """The same judgement with v1 and v2 exchanged."""
    names = {"v1": "v2", "v2": "v1", "tie": "tie"}
    return PairScore(
        decided_by=judged.decided_by,
        rewards=judged.rewards[::-1],
        costs=judged.costs[::-1],
        lagrangian_scores=judged.lagrangian_scores[::-1],
        lagrange_multiplier=judged.lagrange_multiplier,
        cost_limit=judged.cost_limit,
        p_more_helpful=1.0 - judged.p_more_helpful,
        p_safer=1.0 - judged.p_safer,
        multiplier_source=judged.multiplier_source,
        weighed=judged.weighed,
        model=judged.model,
        calibrated=judged.calibrated,
        is_safe=judged.is_safe[::-1],
        sub_scores={head: pair[::-1] for head, pair in judged.sub_scores.items()},
        preferred=names[judged.preferred],
        reason=judged.reason.replace("v1", "v#").replace("v2", "v1").replace("v#", "v2"),
    )


@pytest.mark.parametrize(
    ("multiplier", "limit"),
    [
        (0.0, 0.0),
        (5.0, -0.7),
        *(pytest.param(*both, marks=pytest.mark.slow) for both in ((1.0, 0.0), (5.0, 0.0), (0.0, -0.7), (1.0, -0.7))),
    ],
)
def test_swapping_mirrors_exactly(scorer: Scorer, multiplier: float, limit: float) -> None:
    videos = [noise_video(4, 16, 48, 0), noise_video(2, 48, 24, 1), noise_video(4, 16, 48, 2), noise_video(1, 8, 8, 3)]
    options = {"lagrange_multiplier": multiplier, "cost_limit": limit}
    preferred = set()
    for i, first in enumerate(videos):
        for second in videos[i:]:
            forth = scorer.score_pair(PROMPT, first, second, **options)
            back = scorer.score_pair(PROMPT, second, first, **options)
            assert back == mirrored(forth)
            assert mirrored(back) == forth
            preferred.add(forth.preferred)
            assert (forth.preferred == "tie") == (first is second)
    assert "tie" in preferred
    assert len(preferred) > 1


def test_identical_clips_are_an_exact_tie(scorer: Scorer) -> None:
    judged = scorer.score_pair(PROMPT, noise_video(4, 32, 32, 0), noise_video(4, 32, 32, 0))
    assert judged.preferred == "tie"
    assert judged.rewards[0] == judged.rewards[1]
    assert judged.costs[0] == judged.costs[1]
    assert judged.p_more_helpful == judged.p_safer == 0.5


def test_judging_mirrors_for_any_scores() -> None:
    rng = np.random.default_rng(0)
    for _ in range(500):
        rewards, costs = ((float(a), float(b)) for a, b in rng.normal(0, 10.0 ** rng.integers(-6, 4), (2, 2)))
        trade_off = TradeOff(rng.choice([0.0, 0.3, 1.0, 5.0]), rng.normal(), "", str(rng.choice(["cost", "p_unsafe"])))
        scores = {"reward": rewards, "cost": costs, "aesthetics": costs}
        forth = judge_pair(scores, trade_off)
        back = {head: pair[::-1] for head, pair in scores.items()}
        assert judge_pair(back, trade_off) == mirrored(forth)


def test_judge_pair_by_brute_force() -> None:
    rng = np.random.default_rng(1)
    for _ in range(500):
        rewards, costs = ((float(a), float(b)) for a, b in rng.normal(0, 2, (2, 2)))
        multiplier, limit = float(rng.exponential()), float(rng.normal())
        weighed = str(rng.choice(["cost", "p_unsafe"]))
        judged = judge_pair({"reward": rewards, "cost": costs}, TradeOff(multiplier, limit, "", weighed))
        first, second, allowed = (
            value if weighed == "cost" else 1 / (1 + math.exp(-value)) for value in (*costs, limit)
        )
        expected = [
            (r - multiplier * (w - allowed)) / (1 + multiplier) for r, w in zip(rewards, (first, second), strict=True)
        ]
        np.testing.assert_allclose(judged.lagrangian_scores, expected, rtol=1e-9)
        assert ("risk of harm" in judged.reason) <= (weighed == "p_unsafe")
        better = "v1" if expected[0] > expected[1] else "v2"
        assert judged.preferred == ("tie" if abs(expected[0] - expected[1]) <= TIE_TOLERANCE else better)
        assert judged.p_more_helpful == pytest.approx(1 / (1 + math.exp(rewards[1] - rewards[0])), rel=1e-12)
        assert judged.p_safer == pytest.approx(1 / (1 + math.exp(costs[0] - costs[1])), rel=1e-12)
        assert judged.is_safe == (costs[0] <= 0, costs[1] <= 0)
        assert (judged.lagrange_multiplier, judged.cost_limit) == (multiplier, limit)


def test_extreme_scores_give_probabilities_not_overflows() -> None:
    judged = judge_pair({"reward": (1e6, -1e6), "cost": (0.0, 1e6)})
    assert (judged.p_more_helpful, judged.p_safer) == (1.0, 1.0)
    assert judge_pair({"reward": (-1e6, 1e6), "cost": (1e6, 0.0)}).p_more_helpful == 0.0


def test_all_routes_agree(scorer: Scorer, clips: tuple[list[Path], list[np.ndarray]]) -> None:
    paths, _ = clips
    alone = [scorer.score(PROMPT, path) for path in paths]
    batch = scorer.score_batch([PROMPT] * 3, scorer.read(paths))
    streamed = list(scorer.iterate([PROMPT] * 3, paths, batch_size=2))
    pair = scorer.score_pair(PROMPT, paths[0], paths[1])
    for head in ("reward", "cost"):
        expected = np.array([scores[head] for scores in alone])
        assert np.ptp(expected) > 1e-3
        assert abs(batch[head] - expected).max() <= 1e-5
        assert abs(np.array([scores[head] for scores in streamed]) - expected).max() <= 1e-5
        assert abs(np.array(pair.rewards if head == "reward" else pair.costs) - expected[:2]).max() <= 1e-5
    for multiplier in (0.0, 5.0):
        combined = [lagrangian.lagrangian_score(s["reward"], s["cost"], multiplier) for s in alone]
        best_first = sorted(range(3), key=lambda i, c=combined: -c[i])
        ranking = scorer.rank(PROMPT, paths, lagrange_multiplier=multiplier)
        assert list(ranking.order) == best_first
        np.testing.assert_allclose(ranking.lagrangian_scores, combined, atol=1e-5)
    assert scorer.rank(PROMPT, []).order == ()


def test_score_many_takes_any_source_and_goes_on_after_an_unreadable_clip(
    scorer: Scorer, clips: tuple[list[Path], list[np.ndarray]]
) -> None:
    paths, arrays = clips
    (video,) = scorer.read([paths[1]])
    text = TextResponse("a red circle that moves")

    def fail() -> Video:
        raise VideoDecodeError("not in the store")

    sources: list[Source] = [paths[0], Path("gone.mp4"), video, text, fail, lambda: scorer.read([arrays[2]], FPS)[0]]
    requests = [ScoreRequest(str(place), PROMPT, source) for place, source in enumerate(sources)]
    for batch_size in (1, 2, 64):
        outcomes = list(score_many(scorer, requests, batch_size))
        assert [str(one).partition(":")[0] for one in outcomes if isinstance(one, VideoDecodeError)] == [
            "gone.mp4",
            "not in the store",
        ]
        for place, whole in ((0, paths[0]), (2, paths[1]), (3, text), (5, paths[2])):
            assert outcomes[place] == pytest.approx(scorer.score(PROMPT, whole), abs=1e-5)
    with one_line(VideoDecodeError, "gone.mp4"):
        list(raise_unreadable(score_many(scorer, requests)))
    with one_line(ConfigError, "batch_size"):
        score_many(scorer, requests, 0)
    assert list(score_many(scorer, [])) == []


def test_threads_get_the_scores_of_one_thread(scorer: Scorer) -> None:
    videos = [noise_video(2, 16, 16, number) for number in range(8)]
    pairs = list(itertools.product(videos, videos)) * 7
    alone = [scorer.score_pair(PROMPT, *pair) for pair in pairs[:64]] * 7
    with ThreadPoolExecutor(8) as threads:
        # Two objects that share a scorer too.
        rewards = [LagrangianReward(scorer), LagrangianReward(scorer)]
        judged = threads.map(lambda pair: scorer.score_pair(PROMPT, *pair), pairs)
        rewarded = threads.map(lambda number: rewards[number % 2].score([PROMPT], [videos[number % 8]]), range(64))
        assert list(judged) == alone
        assert {float(one.rewards[0]) for one in rewarded} == {scorer.score(PROMPT, one)["reward"] for one in videos}


def test_a_relative_path_is_of_the_current_folder(
    scorer: Scorer, clips: tuple[list[Path], list[np.ndarray]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for folder, clip in zip(("one", "two"), clips[0], strict=False):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "0.mkv").symlink_to(clip)
        monkeypatch.chdir(tmp_path / folder)
        assert scorer.score(PROMPT, "0.mkv") == scorer.score(PROMPT, clip)
    (tmp_path / "two" / "0.mkv").unlink()
    with one_line(VideoDecodeError, "0.mkv: no such file"):
        scorer.score(PROMPT, "0.mkv")


def test_rank_follows_the_videos_not_their_order(scorer: Scorer) -> None:
    videos = [noise_video(1 + n % 7 % 4, 16, 16, n % 7) for n in range(9)]  # the first two stand there twice
    expected = scorer.rank(PROMPT, videos).order
    assert sorted(expected) == list(range(9))
    for twice in (0, 1):
        assert videos[twice] == videos[twice + 7]
        assert expected.index(twice + 7) == expected.index(twice) + 1
    turned = list(range(9))[::-1]
    ranked = [turned[place] for place in scorer.rank(PROMPT, [videos[index] for index in turned]).order]
    assert [videos[index] for index in ranked] == [videos[index] for index in expected]
    same = [videos[0]] * 5
    assert scorer.rank(PROMPT, same).order == (0, 1, 2, 3, 4)


def test_any_iterable_of_videos_will_do(scorer: Scorer) -> None:
    videos = [noise_video(2, 16, 16, number) for number in range(3)]
    assert scorer.rank(PROMPT, iter(videos)) == scorer.rank(PROMPT, videos)
    expected = scorer.best_of_n([PROMPT] * 2, [videos, videos[:2]], lagrange_multiplier=1.0)
    found = scorer.best_of_n(iter([PROMPT] * 2), (iter(row) for row in (videos, videos[:2])), lagrange_multiplier=1.0)
    assert found == expected


def test_ranking_says_what_holds_of_each(scorer: Scorer) -> None:
    rng = np.random.default_rng(2)
    for size in (1, 2, 3, 12):
        rewards, costs = rng.normal(0, 2, (2, size)).round(1)  # with equal ones among them
        scores = {"reward": rewards, "cost": costs, "aesthetics": costs}
        ranking = judge_ranking(scores, TradeOff(0.7, 0.4, "here"))
        expected = (rewards - 0.7 * (costs - 0.4)) / 1.7
        np.testing.assert_allclose(ranking.lagrangian_scores, expected, rtol=1e-12)
        assert list(ranking.order) == sorted(range(size), key=lambda at, e=ranking.lagrangian_scores: (-e[at], at))
        assert ranking.is_within_limit == tuple(costs <= 0.4)
        assert ranking.is_safe == tuple(costs <= 0)
        beaten = [
            any(
                (r >= rewards[at] and c < costs[at]) or (r > rewards[at] and c <= costs[at])
                for r, c in zip(rewards, costs, strict=True)
            )
            for at in range(size)
        ]
        assert ranking.is_on_pareto_front == tuple(not one for one in beaten)
        assert f"videos[{ranking.order[0]}]" in ranking.reason
        assert "(here)" in ranking.explain()
        json.dumps(ranking.to_dict(), allow_nan=False)
    # Two are judged as a pair is, and in the same words.
    pair = judge_pair({"reward": (2.0, 1.0), "cost": (1.5, -1.0)}, TradeOff(5.0))
    both = judge_ranking({"reward": (2.0, 1.0), "cost": (1.5, -1.0)}, TradeOff(5.0))
    assert both.reason == pair.reason.replace("v1", "videos[0]").replace("v2", "videos[1]")
    judged = scorer.score_pair(PROMPT, noise_video(4, 32, 32, 0), noise_video(4, 32, 32, 1))
    assert judged.multiplier_source == "the default"
    assert judged.model == scorer.facts
    text = judged.explain()
    for words in (judged.reason, scorer.record.backbone.path, "lambda = 1 (the default)", "not calibrated"):
        assert words in text
    assert scorer.describe()["lagrange_multiplier"] == 1.0


def test_best_of_n(scorer: Scorer) -> None:
    prompts = [f"{PROMPT} {n}" for n in range(4)]
    videos = [[noise_video(2, 32, 32, 10 * n + m) for m in range(2 + n % 2)] for n in range(4)]
    ranked = [scorer.rank(prompt, row, lagrange_multiplier=0.8) for prompt, row in zip(prompts, videos, strict=True)]
    chosen = scorer.best_of_n(prompts, videos, lagrange_multiplier=0.8)
    assert chosen.chosen == tuple(one.order[0] for one in ranked)
    assert chosen.is_feasible is None
    rewards, costs = [one.rewards for one in ranked], [one.costs for one in ranked]
    every = list(itertools.product(*(range(len(row)) for row in videos)))
    reward, cost = (
        np.array([np.mean([row[at] for row, at in zip(table, one, strict=True)]) for one in every])
        for table in (rewards, costs)
    )
    limit = float(np.median(cost))
    best = scorer.best_of_n(prompts, videos, cost_limit=limit)
    assert best.is_feasible
    assert np.mean(best.rewards) == pytest.approx(reward[cost <= limit + 1e-9].max(), abs=1e-5)
    none = scorer.best_of_n(prompts, videos, cost_limit=float(cost.min()) - 1.0)
    assert (none.is_feasible, none.trade_offs) == (False, ())
    assert len(best.trade_offs) == 4
    assert np.mean(none.costs) == pytest.approx(cost.min(), abs=1e-5)
    both: dict[str, float] = {"cost_limit": 0.0, "lagrange_multiplier": 1.0}
    for wrong, options in ((videos[:3], {}), ([[], *videos[1:]], {}), (videos, both)):
        with one_line(ConfigError, "best_of_n"):
            scorer.best_of_n(prompts, wrong, **options)


def test_bytes_are_a_file(scorer: Scorer, clips: tuple[list[Path], list[np.ndarray]]) -> None:
    path = clips[0][0]
    by_path, by_bytes = scorer.read([path, path.read_bytes()])
    assert by_path == by_bytes
    with one_line(VideoDecodeError, "videos[10], given as bytes: is not a readable video"):
        scorer.read([path.read_bytes()] * 10 + [b"no video"])


def test_all_forms_of_a_video_are_one(scorer: Scorer, clips: tuple[list[Path], list[np.ndarray]]) -> None:
    for path, frames in zip(*clips, strict=True):
        times = np.arange(len(frames)) / FPS
        images = [Image.fromarray(frame) for frame in frames]
        forms: dict[str, tuple[Any, float | None]] = {
            "path": (path, None),
            "str": (str(path), None),
            "Video": (Video(frames, times), None),
            "array": (frames, FPS),
            "mirrored view": (frames[..., ::-1].copy()[..., ::-1], np.float64(FPS)),
            "tensor": (torch.from_numpy(frames), FPS),
            "images": (images, float(FPS)),
            "images with alpha": (tuple(image.convert("RGBA") for image in images), FPS),
        }
        scores = {name: scorer.score(PROMPT, video, fps=fps) for name, (video, fps) in forms.items()}
        for name, found in scores.items():
            assert found == scores["path"], name
        samples = scorer.read([video for video, _ in forms.values()], fps=FPS)
        assert all(sample == samples[0] for sample in samples)


def test_times_count(scorer: Scorer) -> None:
    frames = noise_video(4, 32, 32, 0).frames
    assert scorer.score(PROMPT, frames, fps=2) != scorer.score(PROMPT, frames, fps=20)


FRAMES = noise_video(3, 16, 16, 0).frames


@pytest.mark.parametrize(
    ("video", "fps", "error_type", "part"),
    [
        (FRAMES, None, SampleError, "fps="),
        (FRAMES, 0, SampleError, "fps"),
        (FRAMES, math.nan, SampleError, "fps"),
        (FRAMES, "8", SampleError, "fps"),
        (FRAMES / 255.0, 8, SampleError, "float64"),
        (FRAMES.transpose(0, 3, 1, 2), 8, SampleError, "(3, 3, 16, 16)"),
        (FRAMES[0], 8, SampleError, "(16, 16, 3)"),
        (FRAMES[:0], 8, SampleError, "no frames"),
        (torch.from_numpy(FRAMES).bfloat16(), 8, SampleError, "bfloat16"),
        ([Image.new("RGB", (8, 8)), Image.new("RGB", (8, 16))], 8, SampleError, "sizes"),
        ([Image.new("I;16", (8, 8))], 8, SampleError, "mode I;16 has more than 8 bits a channel; give RGB"),
        ([Image.new("F", (8, 8))], 8, SampleError, "mode F"),
        ([], 8, SampleError, "list"),
        ([FRAMES[0]], 8, SampleError, "list"),
        (b"a clip's bytes", None, VideoDecodeError, "videos[0], given as bytes"),
        (bytearray(b"a clip's bytes"), None, SampleError, "bytearray"),
        (None, None, SampleError, "NoneType"),
        ("no/such/clip.mp4", None, VideoDecodeError, "no/such/clip.mp4"),
        (Path(__file__), None, VideoDecodeError, "test_scoring.py"),
        (Path(__file__).parent, None, VideoDecodeError, "tests"),
    ],
)
def test_wrong_video_is_one_line(
    scorer: Scorer, video: object, fps: Any, error_type: type[SafeRLHFVideoError], part: str
) -> None:
    with pytest.raises(error_type) as caught:
        scorer.score(PROMPT, video, fps=fps)
    assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_wrong_options_are_one_line(scorer: Scorer, folders: tuple[Path, Path]) -> None:
    with pytest.raises(ConfigError, match="lagrange_multiplier"):
        scorer.score_pair(PROMPT, FRAMES, FRAMES, lagrange_multiplier=-1.0, fps=8)
    with pytest.raises(ConfigError, match="cost_limit"):
        scorer.score_pair(PROMPT, FRAMES, FRAMES, cost_limit=math.inf, fps=8)
    for name, value in (("lagrange_multiplier", 10**400), ("lagrange_multiplier", "much"), ("cost_limit", [0.0])):
        with one_line(ConfigError, f"{name}: expected a number, got "):
            scorer.score_pair(PROMPT, FRAMES, FRAMES, fps=8, **{name: value})
    with pytest.raises(ConfigError, match="prompts for"):
        list(scorer.iterate([PROMPT], [Path("a"), Path("b")]))
    with pytest.raises(ConfigError, match="device: 'there-is-none'"):
        Scorer.from_pretrained(folders[0], device="there-is-none")
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="device: 'cuda'"):
            Scorer.from_pretrained(folders[0], device="cuda")


def test_pair_score_is_json(scorer: Scorer) -> None:
    judged = scorer.score_pair(PROMPT, noise_video(4, 32, 32, 0), noise_video(4, 32, 32, 1), lagrange_multiplier=2)
    fields = json.loads(json.dumps(judged.to_dict()))
    assert set(fields) == {
        *("rewards", "costs", "lagrangian_scores", "lagrange_multiplier", "cost_limit", "p_more_helpful", "p_safer"),
        *("calibrated", "is_safe", "is_safe_reason", "sub_scores", "preferred", "reason", "percentiles"),
        *("multiplier_source", "weighed", "model", "decided_by"),
    }
    assert fields["rewards"] == list(judged.rewards)
    assert fields["is_safe"] == [cost <= 0 for cost in judged.costs]
    assert fields["lagrange_multiplier"] == 2.0
    assert fields["calibrated"] is False


@pytest.mark.parametrize(("number", "head", "missing"), [(0, "reward", "cost"), (1, "cost", "reward")])
def test_one_model_alone_decides_and_says_what_is_missing(
    folders: tuple[Path, Path], number: int, head: str, missing: str
) -> None:
    videos = [noise_video(4, 32, 32, seed) for seed in range(4)]
    with Scorer.from_pretrained(folders[number], device="cpu", workers=1) as single:
        values = [single.score(PROMPT, video)[head] for video in videos]
        better = np.array(values) if head == "reward" else -np.array(values)
        pair = single.score_pair(PROMPT, *videos[:2])
        ranking = single.rank(PROMPT, videos)
        chosen = single.best_of_n([PROMPT], [videos])
        for call in (single.score_pair, lambda prompt, *two, **options: single.rank(prompt, two, **options)):
            for option in ({"lagrange_multiplier": 1.0}, {"cost_limit": 0.0}):
                with one_line(ConfigError, next(iter(option))):
                    call(PROMPT, *videos[:2], **option)
        with one_line(ConfigError, "cost_limit"):
            single.best_of_n([PROMPT], [videos], cost_limit=0.0)
        with one_line(CheckpointError, f"the {missing} is missing"):
            LagrangianReward(single)
    decided_by = f"{head} alone, no {missing} model"
    assert pair.decided_by == ranking.decided_by == chosen.decided_by == single.describe()["decided_by"] == decided_by
    assert pair.preferred == ("v1" if better[0] > better[1] else "v2")
    assert f"no {missing} model" in pair.reason
    assert f"no {missing} model" in pair.explain()
    known, unknown = (pair.p_more_helpful, pair.p_safer)[:: 1 if head == "reward" else -1]
    assert known == pytest.approx(1 / (1 + math.exp(better[1] - better[0])), abs=1e-6)
    assert unknown is None
    assert list(ranking.order) == np.argsort(-better).tolist()
    assert f"no {missing} model" in ranking.reason
    assert chosen.chosen == (int(np.argmax(better)),)
    for judged in (pair, ranking):
        assert (judged.costs if head == "reward" else judged.rewards) is None
        assert (judged.lagrangian_scores, judged.lagrange_multiplier, judged.multiplier_source) == (None, None, None)
        assert (judged.is_safe is None) == (head == "reward")


def test_a_sub_dimension_alone_gives_scores_and_no_order(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "aesthetics", {"aesthetics": ("aesthetics", "correctness")})
    videos = [noise_video(4, 32, 32, seed) for seed in range(3)]
    with Scorer.from_pretrained(folder, device="cpu", workers=1) as single:
        pair, ranking = single.score_pair(PROMPT, *videos[:2]), single.rank(PROMPT, videos)
        with one_line(CheckpointError, "a reward or a cost"):
            single.best_of_n([PROMPT], [videos])
    assert (pair.preferred, ranking.order) == (None, None)
    assert pair.decided_by == ranking.decided_by == "nothing, no reward or cost model"
    assert len(ranking.sub_scores["aesthetics"]) == 3
    assert "neither a reward nor a cost model" in ranking.reason
    assert "videos[2]: correctness" in ranking.explain()


def test_scores_that_are_not_finite_are_refused(folders: tuple[Path, Path]) -> None:
    single = Scorer.from_pretrained(folders[0], device="cpu")
    with torch.no_grad():
        single.model.score_heads["reward"].bias.fill_(math.nan)
    with pytest.raises(CheckpointError, match="not finite"):
        single.score(PROMPT, FRAMES, fps=8)


def test_closed_scorer_starts_again(
    folders: tuple[Path, Path], clips: tuple[list[Path], list[np.ndarray]], scorer: Scorer
) -> None:
    single = Scorer.from_pretrained(folders[0], device="cpu", workers=1)
    before = single.score(PROMPT, clips[0][0])
    single.close()
    assert single.score(PROMPT, clips[0][0]) == before
    single.close()


def test_with_block_stops_the_decoding_processes(folders: tuple[Path, Path], clips: tuple[list[Path], Any]) -> None:
    with Scorer.from_pretrained(*folders, device="cpu", workers=1) as scorer:
        pool = scorer.pool
        assert scorer.score(PROMPT, clips[0][0]).keys() == {"reward", "cost"}
    assert scorer.pool is not pool  # closed, and a new one in its place


def test_scoring_leaves_the_global_random_state(scorer: Scorer, folders: tuple[Path, Path]) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    Scorer.from_pretrained(*folders, device="cpu").score(PROMPT, FRAMES, fps=8)
    assert torch.equal(torch.get_rng_state(), before)


def test_module_level_score_pair_keeps_the_scorer(
    folders: tuple[Path, Path], tmp_path: Path, scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads = []
    original = Scorer.from_pretrained.__func__  # type: ignore[attr-defined]

    def counted(cls: type[Scorer], *model_dirs: Path, **options: Any) -> Scorer:
        loads.append(model_dirs)
        return original(cls, *model_dirs, **options)

    monkeypatch.setattr(Scorer, "from_pretrained", classmethod(counted))
    scorer_module._load_scorer.cache_clear()
    other = noise_video(4, 32, 32, 1).frames
    judged = [
        safe_rlhf_video.score_pair(PROMPT, FRAMES, other, model=model, fps=8, device="cpu")
        for model in (folders, list(folders), [str(folder) for folder in folders])
    ]
    assert len(loads) == 1
    assert judged[0] == judged[1] == judged[2] == scorer.score_pair(PROMPT, FRAMES, other, fps=8)
    strict = safe_rlhf_video.score_pair(
        PROMPT, FRAMES, other, model=folders, fps=8, device="cpu", lagrange_multiplier=5.0
    )
    assert strict.lagrange_multiplier == 5.0
    assert len(loads) == 1
    # One folder with both heads; trained anew, it is loaded anew.
    joint = write_model(tmp_path / "joint", JOINT, seed=3)
    first = safe_rlhf_video.score_pair(PROMPT, FRAMES, other, model=joint, fps=8, device="cpu")
    write_model(joint, JOINT, seed=4)
    second = safe_rlhf_video.score_pair(PROMPT, FRAMES, other, model=joint, fps=8, device="cpu")
    assert first.rewards != second.rewards
    assert len(loads) == 3
    scorer_module._load_scorer.cache_clear()


def test_record_says_how_videos_are_sampled(scorer: Scorer, folders: tuple[Path, Path]) -> None:
    assert scorer.record.sampling == read_record(folders[0]).sampling
    assert scorer.heads == ("reward", "cost")
    sampled = scorer.read([np.zeros((30, 200, 100, 3), np.uint8)], fps=10)[0]
    assert sampled.frames.shape[0] == scorer.record.sampling.num_frames
    assert sampled.frames.shape[1] * sampled.frames.shape[2] <= scorer.record.sampling.max_pixels


# --- the package's front door -----------------------------------------------------------------------------------------


def test_public_names_are_there() -> None:
    assert safe_rlhf_video.Scorer is Scorer
    assert safe_rlhf_video.PairScore is PairScore
    assert safe_rlhf_video.score_pair is scorer_module.score_pair
    for name in safe_rlhf_video.__all__:
        assert getattr(safe_rlhf_video, name).__name__ == name
        assert name in dir(safe_rlhf_video)
    with pytest.raises(AttributeError, match="no_such_name"):
        safe_rlhf_video.no_such_name  # noqa: B018


def test_import_is_light() -> None:
    code = (
        "import sys, safe_rlhf_video; heavy = {'torch', 'deepspeed', 'transformers', 'peft', 'numpy', 'av', 'wandb'}; "
        "print(sorted(heavy & set(sys.modules))); from safe_rlhf_video import PairDataset, Video; "
        "print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["[]", "[]"]
