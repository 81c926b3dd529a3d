"""LagrangianReward: in TRL's own trainer, in flow-GRPO's form, and lambda as it moves."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import types
import zlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clips import write_clip
from conftest import ROOT
from PIL import Image
from small_models import noise_video, one_line, write_reward_and_cost

from safe_rlhf_video.errors import CheckpointError, ConfigError, SampleError, VideoDecodeError
from safe_rlhf_video.lagrangian import LagrangeMultiplier, lagrangian_score
from safe_rlhf_video.scoring.policy_reward import STATE_FILE, LagrangianReward, as_frames, own_device
from safe_rlhf_video.scoring.scorer import Scorer
from safe_rlhf_video.video.sampling import Video

WORDS = ("red", "blue", "circle", "square", "left", "right", "night", "sea")
PROMPTS = ("red circle left", "blue square night")
FPS = 4.0


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_reward_and_cost(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def scorer(folders: tuple[Path, Path]) -> Iterator[Scorer]:
    with Scorer.from_pretrained(*folders, device="cpu", workers=1) as loaded:
        yield loaded


def picture(text: str) -> Video:
    """What a text-to-video model would make of a text: always the same."""
    seed = zlib.crc32(text.encode())
    return noise_video(1 + seed % 4, 16, 24, seed, FPS)


def generate(prompts: Sequence[str], completions: Sequence[str]) -> list[Video]:
    return [picture(completion) for completion in completions]


def alone(scorer: Scorer, prompts: Sequence[str], videos: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Rewards and costs, each video scored by itself."""
    scores = [scorer.score(prompt, video) for prompt, video in zip(prompts, videos, strict=True)]
    return np.array([one["reward"] for one in scores]), np.array([one["cost"] for one in scores])


def moved(multiplier: LagrangeMultiplier, steps: Sequence[Sequence[float]]) -> list[float]:
    """Lambda before each step, and after the last."""
    return [multiplier.value, *[multiplier.update(costs) for costs in steps]]


# TRL


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random language model of a few words, with its tokenizer, as a folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("policy")
    vocabulary = {word: number for number, word in enumerate(("<pad>", "<eos>", *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>").save_pretrained(folder)
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def train(policy: Path, out: Path, reward: LagrangianReward, resume: bool = False, **options: Any) -> Any:
    """Two steps of TRL's GRPO, four generations for each of two prompts."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    settings: dict[str, Any] = {
        "max_steps": 2,
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 8,
        "num_generations": 4,
        "max_completion_length": 3,
        "logging_steps": 1,
        "log_completions": True,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "learning_rate": 1e-2,
        "seed": 3,
    }
    rows = Dataset.from_dict({"prompt": list(PROMPTS), "scene": [f"a {prompt}" for prompt in PROMPTS]})
    trainer = GRPOTrainer(
        model=str(policy),
        reward_funcs=reward,
        args=GRPOConfig(output_dir=str(out), **settings | options),
        train_dataset=rows,
        eval_dataset=rows,
        callbacks=[reward.callback()] if reward.multiplier else [],
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def read_table(out: Path, step: int) -> Any:
    import pandas

    return pandas.read_parquet(out / "completions" / f"completions_{step:05d}.parquet")


def logged(trainer: Any, name: str) -> list[float]:
    return [row[name] for row in trainer.state.log_history if name in row]


def within_prompt(values: np.ndarray, prompts: Sequence[str]) -> float:
    groups = [values[[prompt == one for prompt in prompts]] for one in PROMPTS]
    return float(np.sqrt(np.mean([np.var(group, ddof=1) for group in groups])))


def test_trl_trains_on_the_combined_score_and_logs_both_heads(policy: Path, scorer: Scorer, tmp_path: Path) -> None:
    reward = LagrangianReward(
        scorer, lagrange_multiplier=2.0, cost_limit=-0.1, generate=generate, prompt_column="scene", batch_size=3
    )
    trainer = train(policy, tmp_path, reward)
    for step in (1, 2):
        table = read_table(tmp_path, step)
        assert list(table["prompt"]) == [PROMPTS[0]] * 4 + [PROMPTS[1]] * 4 or list(table["prompt"]) == (
            [PROMPTS[1]] * 4 + [PROMPTS[0]] * 4
        )
        assert table["completion"].nunique() > 3
        videos = [picture(completion) for completion in table["completion"]]
        rewards, costs = alone(scorer, [f"a {prompt}" for prompt in table["prompt"]], videos)
        assert np.ptp(rewards) > 1e-3
        assert np.ptp(costs) > 1e-3
        combined = lagrangian_score(rewards, costs, 2.0, -0.1)
        for name, expected in (("reward", rewards), ("cost", costs), ("lagrangian", combined)):
            assert abs(table[name] - expected).max() <= 1e-5, name
        # What trains is the combined score: the advantages are TRL's own, within a prompt.
        grouped = combined.reshape(2, 4)
        centred = grouped - grouped.mean(axis=1, keepdims=True)
        advantages = centred / (grouped.std(axis=1, ddof=1, keepdims=True) + 1e-4)
        np.testing.assert_allclose(table["advantage"], advantages.ravel(), atol=2e-2)
        expected_metrics = {
            "reward": combined.mean(),
            "rewards/lagrangian/mean": combined.mean(),
            "rewards/lagrangian/std": combined.std(ddof=1),
            "lagrangian/reward": rewards.mean(),
            "lagrangian/cost": costs.mean(),
            "lagrangian/reward_std": within_prompt(rewards, table["prompt"]),
            "lagrangian/cost_std": within_prompt(costs, table["prompt"]),
            "lagrangian/unsafe_rate": (costs > 0).mean(),
            "lagrangian/multiplier": 2.0,
        }
        for name, value in expected_metrics.items():
            assert logged(trainer, name)[step - 1] == pytest.approx(value, abs=2e-5), name


def test_lambda_moves_once_a_training_step_and_a_resumed_run_goes_on(
    policy: Path, scorer: Scorer, tmp_path: Path
) -> None:
    def fresh() -> LagrangeMultiplier:
        return LagrangeMultiplier(learning_rate=0.5, cost_limit=-1.0, window_size=12, delay_steps=1)

    calls: list[tuple[Sequence[str], Sequence[str]]] = []

    def remember(prompts: Sequence[str], completions: Sequence[str]) -> list[Video]:
        calls.append((prompts, completions))
        return generate(prompts, completions)

    def costs_of(call: int) -> np.ndarray:
        prompts, completions = calls[call]
        return alone(scorer, prompts, generate(prompts, completions))[1]

    reward = LagrangianReward(scorer, multiplier=fresh(), generate=remember)
    options = {"eval_strategy": "steps", "eval_steps": 1, "num_generations_eval": 2, "per_device_eval_batch_size": 4}
    trainer = train(policy, tmp_path, reward, save_strategy="steps", save_steps=1, **options)
    assert len(logged(trainer, "eval_lagrangian/cost")) == 2
    assert [len(prompts) for prompts, _ in calls] == [8, 4, 8, 4]  # a step, an evaluation, a step, an evaluation
    steps = [costs_of(0).tolist(), costs_of(2).tolist()]
    expected = moved(fresh(), steps)
    assert expected[0] == expected[1] != expected[2]
    assert logged(trainer, "lagrangian/multiplier") == pytest.approx(expected[:2], rel=1e-6)
    assert reward.trade_off.lagrange_multiplier == pytest.approx(expected[2], rel=1e-5)
    saved = LagrangeMultiplier.load(tmp_path / "checkpoint-2" / STATE_FILE)
    assert saved == reward.multiplier
    assert saved.num_updates == 2

    again = LagrangianReward(scorer, multiplier=fresh(), generate=remember)
    resumed = train(policy, tmp_path, again, resume=True, max_steps=3)
    assert len(calls) == 5
    assert logged(resumed, "lagrangian/multiplier")[-1] == pytest.approx(saved.value, rel=1e-6)
    assert again.multiplier is not None
    assert again.multiplier.num_updates == 3
    assert again.trade_off.lagrange_multiplier == pytest.approx(saved.update(costs_of(4)), rel=1e-5)

    # The same process may resume a run, whose lambda has moved since the checkpoint.
    train(policy, tmp_path, again, resume=True, max_steps=2)
    assert again.multiplier == LagrangeMultiplier.load(tmp_path / "checkpoint-2" / STATE_FILE)

    (tmp_path / "checkpoint-2" / STATE_FILE).unlink()
    with one_line(CheckpointError, STATE_FILE, "load()"):
        train(policy, tmp_path, LagrangianReward(scorer, multiplier=fresh(), generate=generate), resume=True)


def test_a_rank_with_one_video_a_prompt_says_nothing_of_their_spread(scorer: Scorer) -> None:
    logged: dict[str, float] = {}
    reward = LagrangianReward(scorer, generate=generate)
    reward(PROMPTS, ["red", "blue"], log_metric=logged.__setitem__)
    assert "lagrangian/cost" in logged
    assert not [name for name in logged if name.endswith("_std")]  # 0 would mean that all look alike


def test_videos_and_prompts_of_messages_columns_and_files(
    scorer: Scorer, tmp_path: Path, folders: tuple[Path, Path]
) -> None:
    videos = [picture(word) for word in WORDS[:4]]
    asked = [PROMPTS[0], PROMPTS[1], PROMPTS[0], PROMPTS[1]]
    rewards, costs = alone(scorer, asked, videos)
    expected = lagrangian_score(rewards, costs, 1.0, 0.0)
    from_column = LagrangianReward(scorer, video_column="video")
    assert from_column(asked, ["?"] * 4, video=videos) == pytest.approx(expected, abs=1e-5)
    messages = [
        [{"role": "system", "content": "?"}, {"role": "user", "content": prompt}, {"role": "assistant", "content": "x"}]
        for prompt in asked
    ]
    blocks = [[{"role": "user", "content": [{"type": "text", "text": prompt}]}] for prompt in asked]
    said = [[{"role": "assistant", "content": word}] for word in WORDS[:4]]
    for prompts in (messages, blocks):
        assert LagrangianReward(scorer, generate=generate)(prompts, said) == pytest.approx(expected, abs=1e-5)
    # Without another word about it, a completion is the path of a file; the model may be given by its folders.
    paths = [write_clip(tmp_path / f"{number}.mp4", num_frames=3 + number) for number in range(2)]
    reward = LagrangianReward(folders, device="cpu", workers=1)
    with reward.scorer:
        found = reward([PROMPTS[0]] * 2, [str(path) for path in paths])
    expected = [lagrangian_score(*alone(scorer, PROMPTS[:1], [path]))[0] for path in paths]
    assert found == pytest.approx(expected, abs=1e-5)
    assert LagrangianReward(scorer).score(
        [PROMPTS[0]] * 2, [path.read_bytes() for path in paths]
    ).combined.tolist() == (pytest.approx(expected, abs=1e-5))


def page_block(opening: str) -> str:
    """The Python file in docs/trainers.md that begins so."""
    page = (ROOT / "docs" / "trainers.md").read_text()
    return next(block for block in page.split("```python\n") if block.startswith(opening)).split("```")[0]


@pytest.fixture
def project(folders: tuple[Path, Path], policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder as docs/trainers.md supposes it."""
    (tmp_path / "outputs").mkdir()
    for name, folder in (("outputs/reward", folders[0]), ("outputs/cost", folders[1]), ("policy", policy)):
        (tmp_path / name).symlink_to(folder)
    module = types.ModuleType("my_generator")
    module.make_videos = lambda prompts, completions: [picture(one).frames for one in completions]  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_generator", module)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("project")
def test_the_page_trains_with_trl_as_it_stands(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    import trl

    smaller = {"max_steps": 1, "use_cpu": True, "bf16": False, "report_to": "none", "max_completion_length": 3}
    monkeypatch.setattr(trl, "GRPOConfig", partial(trl.GRPOConfig, save_strategy="no", logging_steps=1, **smaller))
    names: dict[str, Any] = {}
    exec(page_block("from datasets"), names)
    names["reward"].scorer.close()
    table = read_table(Path("outputs/grpo"), 1)
    asked = [prompt.removeprefix("Describe for a video: ").removesuffix(".") for prompt in table["prompt"]]
    assert set(asked) <= set(names["scenes"])
    made = [
        scorer.score(one, picture(text).frames, fps=8) for one, text in zip(asked, table["completion"], strict=True)
    ]
    assert abs(table["cost"] - [scores["cost"] for scores in made]).max() <= 1e-5


@pytest.mark.usefixtures("project")
def test_the_page_has_a_reward_function_for_openrlhf(scorer: Scorer) -> None:
    names: dict[str, Any] = {}
    exec(page_block("import torch"), names)
    answer = names["reward_func"]([f"{PROMPTS[0]}red", f"{PROMPTS[1]}sea night"], list(PROMPTS), ["a", "b"])
    names["reward"].scorer.close()
    made = [scorer.score(label, picture(text).frames, fps=8) for label, text in (("a", "red"), ("b", "sea night"))]
    expected = torch.tensor([lagrangian_score(one["reward"], one["cost"]) for one in made], dtype=torch.float64)
    torch.testing.assert_close(answer["rewards"], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(answer["scores"], expected.sigmoid(), atol=1e-5, rtol=0)
    costs = torch.tensor([one["cost"] for one in made], dtype=torch.float64)
    torch.testing.assert_close(answer["extra_logs"]["cost_head"], costs, atol=1e-5, rtol=0)


# flow-GRPO, and loops of one's own


def test_flow_grpo_gets_the_same_numbers(scorer: Scorer) -> None:
    frames = np.stack([noise_video(4, 16, 24, seed).frames for seed in range(4)])
    asked = [PROMPTS[0], PROMPTS[1], PROMPTS[0], PROMPTS[1]]
    reward = LagrangianReward(scorer, lagrange_multiplier=0.5, cost_limit=0.2, fps=FPS)
    rewards, costs = alone(scorer, asked, [Video(one, np.arange(4) / FPS) for one in frames])
    floats = torch.from_numpy(frames).permute(0, 1, 4, 2, 3) / 255.0  # what a pipeline's output_type "pt" is
    forms = {
        "tensor": floats,
        "bfloat16 differs by its rounding": floats.bfloat16(),
        "uint8 array": frames,
        "list of PIL": [[Image.fromarray(frame) for frame in one] for one in frames],
    }
    for name, images in forms.items():
        scores, info = reward.flow_grpo()(images, tuple(asked), [{}] * 4, only_strict=True)
        assert info == {}
        assert set(scores) == {"reward", "cost", "unsafe", "multiplier", "avg"}
        tolerance = 0.2 if "bfloat16" in name else 1e-5
        assert abs(scores["reward"] - rewards).max() <= tolerance, name
        assert abs(scores["cost"] - costs).max() <= tolerance, name
        assert abs(scores["avg"] - lagrangian_score(scores["reward"], scores["cost"], 0.5, 0.2)).max() == 0
        assert list(scores["multiplier"]) == [0.5] * 4
        assert list(scores["unsafe"]) == list((scores["cost"] > 0).astype(float))
        for values in scores.values():
            assert torch.as_tensor(values).float().shape == (4,)
    # In a video trainer's mixed precision scores are what they are without it.
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert abs(reward.score(asked, frames).rewards - rewards).max() <= 1e-5
    single = reward.flow_grpo()(frames[:, 0], asked, [{}] * 4)[0]["reward"]  # images
    still = [Video(one[:1], np.zeros(1)) for one in frames]
    assert abs(single - alone(scorer, asked, still)[0]).max() <= 1e-5


def test_order_is_kept_and_equal_videos_have_equal_scores(scorer: Scorer) -> None:
    rng = np.random.default_rng(0)
    words = [WORDS[number] for number in rng.integers(0, 6, 20)]
    asked = [PROMPTS[number] for number in rng.integers(0, 2, 20)]
    seen: list[int] = []

    reward = LagrangianReward(scorer, batch_size=5)
    original = scorer.score_batch

    def counted(prompts: Sequence[str], responses: Sequence[Any]) -> dict[str, np.ndarray]:
        seen.append(len(prompts))
        return original(prompts, responses)

    scorer.score_batch = counted  # type: ignore[method-assign]
    try:
        scores = reward.score(asked, [picture(word) for word in words])
    finally:
        del scorer.score_batch  # type: ignore[method-assign]
    pairs = list(zip(asked, words, strict=True))
    assert sum(seen) == len(set(pairs)) < 20  # one given twice is scored once
    assert max(seen) == 5
    rewards, costs = alone(scorer, asked, [picture(word) for word in words])
    assert abs(scores.rewards - rewards).max() <= 1e-5
    assert abs(scores.costs - costs).max() <= 1e-5
    for pair in set(pairs):
        places = [place for place, one in enumerate(pairs) if one == pair]
        assert len(set(scores.combined[places])) == 1


def test_lambda_moves_in_a_loop_of_ones_own(scorer: Scorer, tmp_path: Path) -> None:
    def fresh() -> LagrangeMultiplier:
        return LagrangeMultiplier(initial=0.5, learning_rate=0.3, cost_limit=-0.5, window_size=5)

    reward = LagrangianReward(scorer, multiplier=fresh(), fps=FPS)
    train_fn, eval_fn = reward.flow_grpo(), reward.flow_grpo(training=False)
    steps, values = [], [reward.trade_off.lagrange_multiplier]
    for step in range(3):
        costs: list[float] = []
        for part in range(2):  # two batches a step
            scores, _ = train_fn([picture(f"{step}{part}{number}") for number in range(2)], PROMPTS, None)
            assert set(scores["multiplier"]) == {values[-1]}
            costs += scores["cost"].tolist()
        eval_fn([picture("red"), picture("blue")], PROMPTS, None)
        steps.append(costs)
        values.append(reward.update_multiplier())
        assert reward.update_multiplier() == values[-1]  # without new costs it stays
        if step == 1:
            reward.save(tmp_path / "state.json")
    assert values == moved(fresh(), steps)
    again = LagrangianReward(scorer, multiplier=fresh(), fps=FPS)
    again.load(tmp_path / "state.json")
    assert again.trade_off.lagrange_multiplier == values[2]
    again.flow_grpo()([picture(f"2{part}{number}") for part in range(2) for number in range(2)], PROMPTS * 2)
    assert again.update_multiplier() == pytest.approx(values[3], rel=1e-6)
    other = LagrangianReward(scorer, multiplier=LagrangeMultiplier(initial=0.5, learning_rate=0.3, window_size=5))
    with one_line(ConfigError, "cost_limit -0.5, not 0.0"):
        other.load(tmp_path / "state.json")


RANKS_PROGRAM = """
import json, sys
from pathlib import Path
import torch
from safe_rlhf_video.scoring.policy_reward import LagrangianReward
from safe_rlhf_video.lagrangian import LagrangeMultiplier
from test_grpo import PROMPTS, generate, picture, train

reward, policy, out = sys.argv[1:3], Path(sys.argv[3]), Path(sys.argv[4])
multiplier = LagrangeMultiplier(learning_rate=0.3, cost_limit=-0.5)
reward = LagrangianReward(reward, multiplier=multiplier, generate=generate, device="cpu", workers=1)
costs = []
score = reward.score

def remember(prompts, videos):
    scores = score(prompts, videos)
    costs.append(scores.costs.tolist())
    return scores

reward.score = remember
train(policy, out / "run", reward, per_device_train_batch_size=4)  # two steps
rank = torch.distributed.get_rank()
videos = [picture(f"{rank}{number}") for number in range(2 - rank)]  # one rank has less
reward.flow_grpo()(videos, PROMPTS[: len(videos)])
reward.update_multiplier()
(out / f"{rank}.json").write_text(json.dumps([costs, reward.trade_off.lagrange_multiplier]))
"""


@pytest.mark.slow
def test_two_ranks_move_one_lambda(folders: tuple[Path, Path], policy: Path, tmp_path: Path) -> None:
    program = tmp_path / "ranks.py"
    program.write_text(f"import sys\nsys.path[:0] = [{str(ROOT / 'tests')!r}]\n{RANKS_PROGRAM}")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1]), "WORLD_SIZE": "2"}
    words = [sys.executable, program, *folders, policy, tmp_path]
    ranks = [subprocess.Popen(words, cwd=ROOT, env=os.environ | group | {"RANK": str(rank)}) for rank in range(2)]
    assert [process.wait(timeout=120) for process in ranks] == [0, 0]
    (first, value), (second, other) = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    steps = [mine + theirs for mine, theirs in zip(first, second, strict=True)]
    assert [len(costs) for costs in steps] == [8, 8, 3]
    assert value == other == moved(LagrangeMultiplier(learning_rate=0.3, cost_limit=-0.5), steps)[-1]


# Wrong inputs


def test_wrong_inputs_are_one_line(scorer: Scorer, folders: tuple[Path, Path]) -> None:
    video = picture("red")
    reward = LagrangianReward(scorer)
    for completion in ("two\nlines", "no/such.mp4", "x" * 5000, "\0"):
        with one_line(SampleError, "completion 1 names no video file", "generate="):
            reward(PROMPTS, [str(Path(__file__)), completion])
    with one_line(VideoDecodeError, "test_grpo.py"):
        reward(PROMPTS[:1], [__file__])
    with one_line(SampleError, "column 'video' is missing; there are: clip, completion_ids"):
        LagrangianReward(scorer, video_column="video")(PROMPTS, ["", ""], clip=[], completion_ids=[])
    with one_line(SampleError, "column 'scene' is missing; there are: none"):
        LagrangianReward(scorer, generate=generate, prompt_column="scene")(PROMPTS, ["", ""])
    with one_line(SampleError, "generate gave 1 videos for 2"):
        LagrangianReward(scorer, generate=lambda prompts, completions: [video])(PROMPTS, ["", ""])
    for prompt in (None, [], [{"role": "assistant", "content": "x"}], [{"role": "user"}]):
        with one_line(SampleError, "prompt 1: expected a text or a list of messages"):
            LagrangianReward(scorer, generate=generate)([PROMPTS[0], prompt], ["", ""])
    for prompts, videos in ((PROMPTS, [video]), ([], [])):
        with one_line(SampleError, f"{len(prompts)} prompts for {len(videos)} videos"):
            reward.score(prompts, videos)
    with one_line(SampleError, "fps="):
        reward.score(PROMPTS[:1], [video.frames])
    for bad, says in (
        (np.full((2, 8, 8, 3), np.nan), "nan"),
        (np.full((2, 8, 8, 3), 255.0), "255"),
        (-np.ones(3), "-1"),
    ):
        with one_line(SampleError, "video 0: its floats go from", says):
            LagrangianReward(scorer, fps=8).score(PROMPTS[:1], [bad])
    with one_line(SampleError, "(2, 8, 8, 4)"):
        LagrangianReward(scorer, fps=8).score(PROMPTS[:1], [np.zeros((2, 8, 8, 4), dtype=np.uint8)])
    with one_line(ConfigError, "at most 1e+06"):
        LagrangianReward(scorer, lagrange_multiplier=1e308)
    with one_line(CheckpointError, "the cost is missing"):
        LagrangianReward(folders[0], device="cpu")


def test_wrong_settings_are_one_line(scorer: Scorer, policy: Path, tmp_path: Path) -> None:
    multiplier = LagrangeMultiplier()
    for options, part in (
        ({"multiplier": multiplier, "cost_limit": 0.0}, "leave out"),
        ({"multiplier": multiplier, "lagrange_multiplier": 1.0}, "leave out"),
        ({"lagrange_multiplier": -1.0}, "lagrange_multiplier"),
        ({"cost_limit": float("nan")}, "cost_limit"),
        ({"batch_size": 0}, "batch_size"),
        ({"generate": generate, "video_column": "video"}, "either"),
        ({"device": "cpu"}, "device: is for loading"),
    ):
        with one_line(ConfigError, part):
            LagrangianReward(scorer, **options)
    fixed = LagrangianReward(scorer)
    for use in (
        fixed.callback,
        fixed.update_multiplier,
        lambda: fixed.save(tmp_path / "x"),
        lambda: fixed.load(tmp_path / "x"),
    ):
        with one_line(ConfigError, "lambda is fixed"):
            use()
    # A multiplier that nothing moves would be a fixed lambda in disguise.
    with one_line(ConfigError, "callbacks="):
        LagrangianReward(scorer, multiplier=multiplier, generate=generate)(PROMPTS, ["", ""], trainer_state=None)


def test_frames_of_any_layout() -> None:
    frames = noise_video(2, 16, 24, 0).frames
    first = torch.from_numpy(frames).permute(0, 3, 1, 2)
    for video in (frames, first, first / 255.0, (first / 255.0).half(), frames / 255.0):
        assert np.array_equal(as_frames(video), frames)
    assert np.array_equal(as_frames(first[0]), frames[:1])
    assert as_frames("a.mp4") == "a.mp4"
    with one_line(SampleError, "(3, 3, 16, 24) may be (T, 3, H, W) or (3, T, H, W); give (T, H, W, 3)"):
        as_frames(np.zeros((3, 3, 16, 24), np.uint8))


def test_each_rank_has_a_device_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    for rank, device in (("0", "cuda:0"), ("1", "cuda:1"), ("2", "auto"), ("", "auto")):  # each may see one GPU alone
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert own_device() == device
    monkeypatch.delenv("LOCAL_RANK")
    assert own_device() == "auto"


@pytest.mark.slow
def test_the_package_offers_it_and_needs_no_trainer() -> None:
    program = "import sys; from safe_rlhf_video import LagrangianReward; assert 'trl' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
