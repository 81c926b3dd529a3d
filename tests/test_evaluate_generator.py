"""Figures of generators against plain loops and known generators, intervals by simulation, and the command on clips."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from clips import write_clip
from conftest import launch
from made_up_evaluations import made_up_evaluation, sign_figures
from small_models import COST, REWARD, one_line, share_loaded, write_model

from safe_rlhf_video.commands.evaluate_generator import parse_videos
from safe_rlhf_video.contracts import to_fields
from safe_rlhf_video.data.records import HARM_LABELS, PromptSample, parse_prompt
from safe_rlhf_video.errors import CheckpointError, ConfigError, SampleError, VideoDecodeError
from safe_rlhf_video.evaluation.generator import evaluate_generators
from safe_rlhf_video.evaluation.generator_results import LeftOut
from safe_rlhf_video.evaluation.generator_table import format_generators
from safe_rlhf_video.evaluation.results import ClassRate, write_evaluation
from safe_rlhf_video.evaluation.score_generators import GeneratorRequest, score_generators, sign_rates
from safe_rlhf_video.models.folder import fingerprint_weights
from safe_rlhf_video.scoring.decisions import TradeOff
from safe_rlhf_video.stats.intervals import prompt_effective_size, prompt_share_interval
from safe_rlhf_video.stats.prevalence import SignRates, corrected_share
from safe_rlhf_video.worlds.video_world import Generator, draw_clip, draw_prompt, true_utilities

CAREFUL = Generator("careful", fidelity=0.85, emblem_compliance=6 / 19, torn=1.2, lights=1.6, grain=1.2, sparks=1.3)
CARELESS = Generator("careless", fidelity=0.65, emblem_compliance=0.6, torn=1.6, lights=1.3, grain=1.5, sparks=1.6)
UNSAFE_SHARE = 0.2  # of CAREFUL: 1 - (1 - (6 / 19) / 2) (1 - 0.05)

Scores = dict[str, list[dict[str, float]]]


def prompt_of(number: int, kind: str | None = "safety_neutral", *labels: str) -> PromptSample:
    record = {"prompt_id": f"p{number}", "prompt_text": f"prompt {number}", "prompt_type": kind}
    return parse_prompt(record | {"prompt_labels": {key: key in labels for key in HARM_LABELS}}, "test")


def draw(generators: list[Generator], num_prompts: int, seed: int) -> tuple[list[PromptSample], dict[str, Scores]]:
    """Prompts of the world, and true rewards and costs of a clip a prompt by each generator."""
    rng = np.random.default_rng(seed)
    prompts = [draw_prompt(rng, held_out=True) for _ in range(num_prompts)]
    samples = [
        prompt_of(number, "safety_neutral" if prompt.emblem is None else "safety_critical")
        for number, prompt in enumerate(prompts)
    ]
    scores: dict[str, Scores] = {}
    for generator in generators:
        scores[generator.name] = {}
        for sample, prompt in zip(samples, prompts, strict=True):
            true = true_utilities(prompt, draw_clip(rng, prompt, generator, allow_held_out=True))
            scores[generator.name][sample.prompt_id] = [{"reward": true["helpfulness"], "cost": true["cost"]}]
    return samples, scores


def test_a_text_under_several_ids_is_one_prompt_with_all_their_clips() -> None:
    rng = np.random.default_rng(0)
    prompts = [prompt_of(number, "safety_neutral", "crime") for number in range(80)]
    alike = [replace(prompt, prompt_text=f"{'A' if number % 2 else 'a'} kite {number // 2}")
             for number, prompt in enumerate(prompts)]  # fmt: skip
    clips = rng.normal(size=(2, 80, 2))
    scores = {name: {f"p{row}": [{"reward": float(one), "cost": float(two)}] for row, (one, two) in enumerate(rows)}
              for name, rows in zip("ab", clips, strict=True)}  # fmt: skip
    joined = {name: {f"p{row}": own[f"p{row}"] + own[f"p{row + 1}"] for row in range(0, 80, 2)}
              for name, own in scores.items()}  # fmt: skip
    result = evaluate_generators(alike, scores)
    assert result == evaluate_generators(alike[::2], joined)
    assert (result.num_prompts, result.generators["a"].all.num_clips) == (40, 80)


def test_a_generator_of_known_harm_is_measured_through_a_classifier_that_errs() -> None:
    prompts, scores = draw([CAREFUL], 600, seed=0)
    rng = np.random.default_rng(0)
    for (clip,) in scores["careful"].values():
        errs = rng.random() < (0.15 if clip["cost"] > 0 else 0.1)
        clip["cost"] = -clip["cost"] if errs else clip["cost"]
    rates = SignRates(sensitivity=0.85, specificity=0.9, size_unsafe=200, size_safe=600, num_prompts=150)
    figures = evaluate_generators(prompts, scores, sign_rates=rates).generators["careful"].all
    low, high = figures.corrected_harmful_rate.interval
    assert low <= UNSAFE_SHARE <= high
    # The raw rate is that of the clips called harmful, the classifier's false alarms included.
    assert figures.harmful_rate.interval[0] > UNSAFE_SHARE


@pytest.mark.parametrize(
    ("true", "sensitivity", "specificity"), [(0.2, 0.85, 0.9), (0.05, 0.95, 0.97), (0.6, 0.8, 0.7)]
)
def test_the_corrected_interval_covers_as_often_as_it_says(true: float, sensitivity: float, specificity: float) -> None:
    rng = np.random.default_rng(6)
    num_trials, num_clips, num_unsafe, num_safe = 4000, 400, 150, 450
    called = rng.binomial(num_clips, true * sensitivity + (1 - true) * (1 - specificity), num_trials) / num_clips
    found, kept = rng.binomial(num_unsafe, sensitivity, num_trials), rng.binomial(num_safe, specificity, num_trials)
    covered = 0
    for trial in range(num_trials):
        rates = SignRates(found[trial] / num_unsafe, kept[trial] / num_safe, num_unsafe, num_safe, 400)
        low, high = corrected_share(called[trial], num_clips, num_clips, rates)[1]
        covered += low <= true <= high
    assert 0.94 < covered / num_trials < 0.97


def test_two_generators_of_known_quality_are_ordered() -> None:
    prompts, scores = draw([CAREFUL, CARELESS], 400, seed=1)
    rng = np.random.default_rng(2)
    hidden: dict[str, list[float]] = {"helpfulness": [], "harmlessness": []}
    for one, other in zip(*(own.values() for own in scores.values()), strict=True):
        for dimension, margin in (("helpfulness", one[0]["reward"] - other[0]["reward"]),
                                  ("harmlessness", other[0]["cost"] - one[0]["cost"])):  # fmt: skip
            hidden[dimension].append(0.5 + 0.5 * float(np.sign(margin)))
        for clip in (*one, *other):
            for head in clip:
                clip[head] += 0.3 * rng.normal()
    result = evaluate_generators(prompts, scores, trade_off=TradeOff(2.0))
    comparison = result.comparison
    assert (comparison.first, comparison.second) == ("careful", "careless")
    for dimension, rate in vars(comparison.all.win_rate).items():
        assert rate.interval[0] > 0.5, dimension
        if dimension in hidden:
            assert rate.interval[0] < np.mean(hidden[dimension]) < rate.interval[1]
    difference = comparison.all.difference
    assert difference.reward.interval[0] > 0
    assert difference.cost.interval[1] < 0
    assert difference.harmful_rate.interval[1] < 0
    # Whoever stands first: the same the other way round.
    turned = evaluate_generators(prompts, dict(reversed(scores.items())), trade_off=TradeOff(2.0)).comparison
    assert turned.all.win_rate.lagrangian.rate == pytest.approx(1 - comparison.all.win_rate.lagrangian.rate)
    assert "careful against careless" in format_generators(result)


def test_figures_by_plain_loops() -> None:
    rng = np.random.default_rng(3)
    prompts = [
        prompt_of(i, ["safety_neutral", "safety_critical", None, "other"][i % 4], *(["crime"] if i % 3 else ["hate"]))
        for i in range(160)
    ]
    scores: dict[str, Scores] = {
        name: {
            prompt.prompt_id: [
                {"reward": float(rng.normal()), "cost": float(rng.normal())} for _ in range(rng.integers(1, 4))
            ]
            for number, prompt in enumerate(prompts)
            if number not in missing
        }
        for name, missing in (("a", {5, 6}), ("b", {6, 7, 8}))
    }
    scores["a"]["p9"] = []
    multiplier = 3.0
    result = evaluate_generators(prompts, scores, trade_off=TradeOff(multiplier, 0.5))
    for name, members in {
        "safety_critical": [p for p in prompts if p.prompt_type == "safety_critical"],
        "crime": [p for p in prompts if p.prompt_labels and p.prompt_labels["crime"]],
    }.items():
        kind = "harm_label" if name == "crime" else "prompt_type"
        rows = [scores["a"][p.prompt_id] for p in members if scores["a"].get(p.prompt_id)]
        figures = getattr(result.generators["a"], kind)[name]
        assert figures.num_prompts == len(rows)
        assert figures.num_clips == sum(len(row) for row in rows)
        for head in ("reward", "cost"):
            mean = sum(sum(clip[head] for clip in row) / len(row) for row in rows) / len(rows)
            assert getattr(figures, head).mean == pytest.approx(mean)
            assert getattr(figures, head).interval[0] < mean < getattr(figures, head).interval[1]
        harmful = sum(sum(clip["cost"] > 0 for clip in row) / len(row) for row in rows) / len(rows)
        assert figures.harmful_rate.rate == pytest.approx(harmful)
        assert figures.corrected_harmful_rate is None
        shared = [p.prompt_id for p in members if scores["a"].get(p.prompt_id) and scores["b"].get(p.prompt_id)]
        wins = {"helpfulness": 0.0, "harmlessness": 0.0, "lagrangian": 0.0}
        for prompt_id in shared:
            matches = [(one, two) for one in scores["a"][prompt_id] for two in scores["b"][prompt_id]]
            for one, two in matches:
                wins["helpfulness"] += (one["reward"] > two["reward"]) / len(matches)
                wins["harmlessness"] += (one["cost"] < two["cost"]) / len(matches)
                one_score, two_score = (clip["reward"] - multiplier * clip["cost"] for clip in (one, two))
                wins["lagrangian"] += (one_score > two_score) / len(matches)
        compared = getattr(result.comparison, kind)[name]
        assert compared.num_prompts == len(shared)
        for dimension, total in wins.items():
            assert getattr(compared.win_rate, dimension).rate == pytest.approx(total / len(shared))
    assert result.num_prompts_without_type == 40
    assert "40 of 160 prompts have no prompt_type" in format_generators(result)
    assert result.generators["a"].prompt_type["other"].num_prompts == 40


def test_too_few_prompts_give_a_reason_and_no_figure() -> None:
    prompts = [prompt_of(i, "safety_neutral", *(["porn"] if i < 29 else [])) for i in range(40)]
    scores = {name: {p.prompt_id: [{"reward": 0.0, "cost": -1.0}] for p in prompts} for name in ("a", "b")}
    result = evaluate_generators(prompts, scores, sign_rates=SignRates(0.9, 0.9, 50, 50, 30))
    for kind, name, reason in (("harm_label", "porn", "29 prompts"), ("prompt_type", "safety_critical", "no prompt")):
        figures = getattr(result.generators["a"], kind)[name]
        assert reason in figures.reason
        assert {figures.reward, figures.cost, figures.harmful_rate, figures.corrected_harmful_rate} == {None}
        compared = getattr(result.comparison, kind)[name]
        assert reason in compared.reason
        assert compared.win_rate is None
    # None harmful of 40 is no certainty, and equal clips are ties.
    none = result.generators["a"].all.harmful_rate
    assert none.rate == 0
    assert 0.05 < none.interval[1] < 0.15
    assert result.comparison.all.win_rate.lagrangian.rate == 0.5
    assert result.comparison.all.difference.harmful_rate.interval[0] < -0.05
    json.dumps(to_fields(result), allow_nan=False)
    assert "29 prompts" in format_generators(result)


def test_clips_of_a_prompt_count_as_many_as_they_tell() -> None:
    rng = np.random.default_rng(4)
    alone = (rng.random(500) < 0.3).astype(float)
    assert prompt_effective_size(alone, 500) == (pytest.approx(499), 500)
    assert prompt_effective_size(alone, 2000) == (pytest.approx(499), 500)  # four clips a prompt, all alike
    independent = rng.binomial(4, 0.3, 5000) / 4
    assert prompt_effective_size(independent, 20000)[0] == pytest.approx(20000, rel=0.1)
    assert prompt_effective_size(np.zeros(40), 160) == (40, 40)
    # Prompts of their own harmfulness: the interval covers as often as it says.
    covered, num_trials = 0, 2000
    for _ in range(num_trials):
        shares = rng.binomial(3, rng.beta(0.5, 2.0, size=100)) / 3
        low, high = prompt_share_interval(shares, 300)
        covered += low <= 0.2 <= high
    assert abs(covered / num_trials - 0.95) < 0.02


def test_correction_is_that_of_rogan_and_gladen() -> None:
    rates = SignRates(sensitivity=0.9, specificity=0.8, size_unsafe=1e9, size_safe=1e9, num_prompts=10**6)
    for true in (0.0, 0.1, 0.5, 1.0):
        called = true * 0.9 + (1 - true) * 0.2
        rate, interval = corrected_share(called, 1e9, 10**6, rates)
        assert rate == pytest.approx(true)
        assert interval == pytest.approx((true, true), abs=1e-3)
    assert corrected_share(0.05, 400, 400, rates)[0] == 0  # fewer than a harmless generator's false alarms
    assert corrected_share(0.99, 400, 400, rates)[0] == 1
    # The fewer clips the rates come from, the less is known.
    widths = [
        np.subtract(*corrected_share(0.3, 400, 400, SignRates(0.9, 0.8, count, count, 400))[1][::-1])
        for count in (30, 300, 3000)
    ]
    assert widths[0] > widths[1] > widths[2]


def test_clips_that_do_not_fit_the_rates_have_no_corrected_interval() -> None:
    rates = SignRates(0.9, 0.8, size_unsafe=1e4, size_safe=1e4, num_prompts=1000)
    assert corrected_share(0.1, 1e4, 1000, rates) == (0.0, None)


def test_rates_that_few_clips_hardly_tell_from_chance_leave_everything_possible() -> None:
    """Drawn towards one half, the rates of few clips may sum to 1 or less, though as counted they do not."""
    for size_unsafe, specificity, size_safe in ((10, 5 / 22, 22), (10, 0.21, 1000), (1e9, 0.2 + 1e-6, 1e9)):
        rates = SignRates(0.8, specificity, size_unsafe, size_safe, num_prompts=10)
        assert corrected_share(0.5, 50, 30, rates)[1] == (0.0, 1.0)


def test_prompts_with_rates_of_their_own_widen_the_corrected_interval() -> None:
    """Eighty labelled clips of ten prompts say less of the cost's sign than eighty of as many."""
    alone, alike = (
        sign_rates(sign_figures(sensitivity=ClassRate(0.9, (0.8, 0.95), size, 80, num_prompts)), "e.json")
        for size, num_prompts in ((80.0, 80), (10.0, 10))
    )
    narrow, wide = (corrected_share(0.3, 400, 400, rates)[1] for rates in (alone, alike))
    assert wide[1] - wide[0] > 1.5 * (narrow[1] - narrow[0])
    for lacking in (sign_figures(sensitivity=None), None):
        with one_line(ConfigError, "e.json", "safe and unsafe clips"):
            sign_rates(lacking, "e.json")
    with one_line(ConfigError, "e.json", "7 prompts", "at least 10 prompts"):
        sign_rates(sign_figures(sensitivity=ClassRate(0.9, None, None, 80, 7)), "e.json")
    with one_line(ConfigError, "no better than chance"):
        sign_rates(sign_figures(sensitivity=ClassRate(0.1, (0.05, 0.2), 80.0, 80, 80)), "e.json")


NUM_PROMPTS = 34


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    root = tmp_path_factory.mktemp("models")
    return [str(write_model(root / "reward", REWARD)), str(write_model(root / "cost", COST, seed=1))]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("clips")
    return [write_clip(folder / f"{seed}.mp4", num_frames=4, seed=seed).read_bytes() for seed in range(5)]


@pytest.fixture
def job(models: list[str], clip: list[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GeneratorRequest:
    """Two folders of clips: the one has files, the other folders with one or two each."""
    share_loaded(monkeypatch)
    prompts = [
        {
            "prompt_id": f"p{i}",
            "prompt_text": f"a thing {i}",
            "prompt_type": "safety_critical",
            "prompt_labels": {"crime": True},
        }
        for i in range(NUM_PROMPTS)
    ]
    (tmp_path / "prompts.json").write_text(json.dumps(prompts))
    for i in range(NUM_PROMPTS):
        (tmp_path / "two" / f"p{i}").mkdir(parents=True)
        (tmp_path / "one").mkdir(exist_ok=True)
        (tmp_path / "one" / f"p{i}.mp4").write_bytes(clip[i % 3])
        for number in range(1 + i % 2):
            (tmp_path / "two" / f"p{i}" / f"{number}.mp4").write_bytes(clip[3 + number])
    (tmp_path / "one" / ".hidden").touch()
    return GeneratorRequest(
        model=models, prompts=tmp_path / "prompts.json", out=tmp_path / "out",
        videos={"one": tmp_path / "one", "two": tmp_path / "two"}, lagrange_multiplier=1.0, cost_limit=0.0,
        batch_size=16,
    )  # fmt: skip


def write_evaluation_of(path: Path, models: list[str]) -> Path:
    fingerprints = {folder: fingerprint_weights([folder]) for folder in models}
    write_evaluation(path, made_up_evaluation(cost_sign=sign_figures(), models=fingerprints))
    return path


def test_command_scores_both_layouts_and_goes_on(job: GeneratorRequest, clip: list[bytes], tmp_path: Path) -> None:
    job = replace(job, evaluation=write_evaluation_of(tmp_path / "evaluation.json", job.model))
    first = score_generators(job)
    assert first.generators["one"].all.num_clips == NUM_PROMPTS
    assert first.generators["two"].all.num_clips == NUM_PROMPTS * 3 // 2
    assert first.generators["two"].harm_label["crime"].corrected_harmful_rate is not None
    assert first.comparison.all.num_prompts == NUM_PROMPTS
    assert first.sign_rates.sensitivity == pytest.approx(0.9)
    assert json.loads((job.out / "generator.json").read_text()) == to_fields(first)

    lines = (job.out / "scores-two.jsonl").read_bytes().splitlines(keepends=True)
    (job.out / "scores-two.jsonl").write_bytes(b"".join(lines[:20]) + lines[20][:7])
    again = score_generators(job)
    for name in ("one", "two"):
        one, other = (evaluation.generators[name].all.reward for evaluation in (again, first))
        assert one.mean == pytest.approx(other.mean, abs=1e-5)
        assert one.interval == pytest.approx(other.interval, abs=1e-5)

    # Another clip in a clip's place does not get its scores, and what was written stays.
    (tmp_path / "one" / "p3.mp4").write_bytes(clip[4])
    report = (job.out / "generator.json").read_bytes()
    with one_line(CheckpointError, "scores-one.jsonl", "other clips"):
        score_generators(job)
    (job.out / "scores-one.jsonl").unlink()
    (job.out / ".generator.json.partial").mkdir()  # no report can be written
    with one_line(ConfigError, "generator.json", "what was there stays"):
        score_generators(job)
    assert (job.out / "generator.json").read_bytes() == report


def test_what_is_missing_is_refused_or_counted(
    job: GeneratorRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "two" / "p2" / "0.mp4").write_bytes(b"no clip")
    with one_line(VideoDecodeError, "1 of 51 clips of two", "p2/0.mp4", "--missing drop"):
        score_generators(job)
    (tmp_path / "one" / "p7.mp4").unlink()
    with one_line(SampleError, "one: 1 of 34 prompts have no clip", "p7", "--missing drop"):
        score_generators(job)
    (tmp_path / "one" / "p99.mp4").write_bytes(b"")
    (tmp_path / "two" / "p1" / "notes.txt").touch()
    with one_line(SampleError, "one: 1 files", "p99.mp4", "--missing drop"):
        score_generators(job)
    assert not list(job.out.glob("generator.json"))
    job = replace(job, missing="drop")
    result = score_generators(job)
    assert result.generators["one"].all.num_prompts == NUM_PROMPTS - 1
    assert result.generators["two"].all.num_prompts == NUM_PROMPTS - 1
    assert result.comparison.all.num_prompts == NUM_PROMPTS - 2
    assert result.generators["one"].left_out == LeftOut(
        strays=(str(tmp_path / "one" / "p99.mp4"),), without_clip=("p7",)
    )
    (broken,) = result.generators["two"].left_out.unreadable
    assert "p2/0.mp4" in broken
    told = capsys.readouterr().out
    for part in ("p99.mp4", "notes.txt", "p7", "p2/0.mp4"):
        assert part in told
    with one_line(SampleError, "nothing is left to score"):
        score_generators(replace(job, videos={"none": tmp_path / "out"}))


def test_wrong_arguments(job: GeneratorRequest, tmp_path: Path) -> None:
    def refuse(error_type: type, *parts: str, **changes: object) -> None:
        with one_line(error_type, *parts):
            score_generators(replace(job, **changes))

    for words, message in (
        (["folder"], "expected NAME=FOLDER"),
        (["a/b=folder"], "expected NAME=FOLDER"),
        (["a=x", "a=y"], "two generators are called 'a'"),
        (["a=x", "b=y", "c=z"], "got 3"),
    ):
        with one_line(ConfigError, message):
            parse_videos(words)
    assert parse_videos(["a=x", "b=y"]) == {"a": Path("x"), "b": Path("y")}
    refuse(ConfigError, "lagrange_multiplier", lagrange_multiplier=-1.0)
    refuse(SampleError, "nowhere", "no such file or folder", videos={"a": tmp_path / "nowhere"})
    refuse(ConfigError, "--out", "cannot be made", out=tmp_path / "prompts.json")
    refuse(CheckpointError, "cost is missing", model=job.model[:1])
    empty = tmp_path / "empty.json"
    empty.write_text("[]")
    refuse(SampleError, "holds no prompt", prompts=empty)
    refuse(SampleError, "not an evaluation", evaluation=empty)
    other = write_evaluation_of(tmp_path / "evaluation.json", job.model[:1])
    refuse(SampleError, "is about other models", evaluation=other)


def test_command_prints_a_table(
    job: GeneratorRequest, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from safe_rlhf_video.commands import evaluate_generator

    words = ["evaluate_generator.py", "--model", *job.model, "--prompts", job.prompts, "--out", job.out]
    monkeypatch.setattr("sys.argv", list(map(str, [*words, "--videos", f"one={job.videos['one']}"])))
    evaluate_generator.main()
    told = capsys.readouterr().out
    for part in (
        "one: 34 of 34 prompts, 34 clips",
        "safety_critical (red-team)",
        "too few prompts for a row",
        "S4 crime",
    ):
        assert part in told
    assert f"wrote {job.out / 'generator.json'}" in told


def test_a_mistake_is_one_line(job: GeneratorRequest, tmp_path: Path) -> None:
    done = launch("scripts/evaluate_generator.py", "--model", *job.model, "--prompts", job.prompts, "--out", job.out,
                  "--videos", f"a={tmp_path / 'nowhere'}", check=False)  # fmt: skip
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert "nowhere" in line


def test_the_generator_is_as_harmful_as_it_is_said_to_be() -> None:
    _, scores = draw([CAREFUL], 5000, seed=9)
    share = np.mean([clip["cost"] > 0 for (clip,) in scores["careful"].values()])
    assert abs(share - UNSAFE_SHARE) < 3 * np.sqrt(0.16 / 5000)
