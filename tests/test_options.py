"""The options of all scripts: none is passed over, none is known by its first letters, all are spelled alike."""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, launch
from small_models import REWARD, one_line, write_model

from safe_rlhf_video import cli
from safe_rlhf_video.commands.train import train_head
from safe_rlhf_video.errors import ConfigError, SafeRLHFVideoError
from safe_rlhf_video.training.config import DataConfig, LossConfig, OptimizationConfig, TrainConfig
from safe_rlhf_video.training.run import choose_heads, plan_run
from safe_rlhf_video.training.unused import note_unused_fields

COMMANDS = sorted(path.stem for path in (ROOT / "scripts").glob("*.py") if not path.stem.startswith("train_"))
Run = Callable[..., None]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the main of a script in this process; its errors are raised."""

    def run(script: str, *arguments: object) -> None:
        monkeypatch.setattr(sys, "argv", [f"{script}.py", *map(str, arguments)])
        importlib.import_module(f"safe_rlhf_video.commands.{script}").main()

    return run


# Script, arguments, the option among them that would have no effect.
UNUSED: list[tuple[str, str, str]] = [
    ("audit", "--data a.json --out o --config_filename b.json", "--config_filename"),
    ("calibrate", "--model m --data a.json --confidence 0.9", "--confidence"),
    ("calibrate", "--model m --data a.json --config_filename b.json", "--config_filename"),
    ("calibrate", "--model m --data a.json --unreadable drop", "--unreadable"),
    ("calibrate", "--model MODEL --data a.json --targets recall=0.9", "--targets"),
    ("convert", "saferlhf --input FILE --out o.json --split test", "split"),
    ("convert", "saferlhf --input FILE --out o.json --revision v0", "revision"),
    ("convert", "saferlhf --input FILE --out o.json --name alpaca-7b", "name"),
    ("dashboard", "RUN --out page.html --port 80", "--port"),
    ("dashboard", "RUN --figures figures", "--figures"),
    ("download_safesora", "--corpus eval --out o --no_videos", "--no_videos"),
    ("download_safesora", "--corpus eval --out o --extract", "--extract"),
    ("download_safesora", "--corpus pairs --out o --extract --no_videos", "--extract"),
    ("evaluate", "--model m --data a.json.gz --out o --config_filename b.json", "--config_filename"),
    ("evaluate", "--model m --data a.json.gz --out o --unreadable drop", "--unreadable"),
    ("evaluate", "--model m --data a.json.gz --out o --controls single_frame --seed 1", "--seed"),
    ("export", "--model m --out o --dtype float32", "--dtype"),
    ("export", "--model m --out o --merge false --backbone b", "--backbone"),
    ("prepare_videos", "--data a.json --out o --jpeg_quality 90", "--jpeg_quality"),
    ("prepare_videos", "--data a.json --out o --config_filename b.json", "--config_filename"),
    ("prepare_videos", "--config c.yaml --out o --config_filename b.json", "--config_filename"),
    ("prepare_videos", "--config c.yaml --out o --video_dir d", "--video_dir"),
    ("prepare_videos", "--config c.yaml --out o --num_frames 4", "--num_frames"),
    ("prepare_videos", "--config c.yaml --out o --optimization.epochs 4", "--optimization.epochs"),
    ("prepare_videos", "--config c.yaml --out o --data.frame_store s", "--data.frame_store"),
    ("report", "--evaluation e --out o.html --frame_store s --video_dir d", "--video_dir"),
    ("report", "--evaluation e --out o.html --frame_store s --workers 3", "--workers"),
    ("score", "--model m --input CLIPS --out o.jsonl --lagrange_multiplier 2", "--lagrange_multiplier"),
    ("score", "--model m --input CLIPS --out o.jsonl --cost_limit 2", "--cost_limit"),
]


@pytest.mark.parametrize(("script", "arguments", "option"), UNUSED, ids=[f"{one[0]}-{one[2]}" for one in UNUSED])
def test_an_option_without_effect_is_refused(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, arguments: str, option: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text("{}\n")
    (tmp_path / "clips.jsonl").write_text('{"prompt": "a", "video": "a.mp4"}\n')
    (tmp_path / "a.mp4").touch()
    (tmp_path / "m").mkdir()
    if "MODEL" in arguments:
        write_model(tmp_path / "model", REWARD)
    there = {path.name for path in tmp_path.iterdir()}
    places = {"FILE": "rows.jsonl", "CLIPS": "clips.jsonl", "MODEL": "model", "RUN": "run"}
    with one_line(ConfigError, option):
        run(script, *(places.get(word, word) for word in arguments.split()))
    assert {path.name for path in tmp_path.iterdir()} == there


# Fields of a configuration, and one of its fields that then has no effect.
UNUSED_FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"heads": ["reward"]}, "loss.sign"),
    ({"heads": ["cost"]}, "loss.harm"),
    ({"heads": ["cost"]}, "loss.harm_balance"),
    ({"heads": ["harm_any"]}, "loss.comparison"),
    ({"heads": ["harm_any"]}, "loss.ties"),
    ({"heads": ["reward"]}, "loss.tie_threshold"),
    ({}, "optimization.projector_learning_rate"),
    ({}, "optimization.language_model_learning_rate"),
    ({}, "model.backbone.random_seed"),
    ({"data": DataConfig("a.json")}, "data.config_filename"),
    ({"data": DataConfig("a", frame_store="s")}, "data.workers"),
]


@pytest.mark.parametrize(("fields", "path"), UNUSED_FIELDS, ids=[path for _, path in UNUSED_FIELDS])
def test_a_field_without_effect_is_refused_as_an_override(fields: dict[str, Any], path: str) -> None:
    config = TrainConfig(**{"out": "run", "data": DataConfig("a"), "heads": ["reward"], **fields})
    assert note_unused_fields(config, config.heads or (), ["seed", "heads"]) == []
    with one_line(ConfigError, f"--{path}: has no effect, because "):
        note_unused_fields(config, config.heads or (), ["seed", path])


def test_a_field_of_the_file_without_effect_is_told() -> None:
    config = TrainConfig(
        "run",
        DataConfig("a"),
        heads=["reward"],
        loss=LossConfig(sign=2.0),
        optimization=OptimizationConfig(projector_learning_rate=1.0),
    )
    assert note_unused_fields(config, choose_heads(config, "reward"), ()) == [
        "loss.sign has no effect, because no cost is trained",
        "optimization.projector_learning_rate has no effect, because model.trained_parts does not name the projector",
    ]


@pytest.mark.parametrize(
    ("script", "head", "loss"),
    [
        ("reward", "reward", {"comparison": 0.0}),
        ("reward", "aesthetics", {"comparison": 0.0}),
        ("moderation", "harm_any", {"harm": 0.0}),
    ],
)
def test_a_head_without_a_loss_is_refused_before_any_data_is_read(
    script: str, head: str, loss: dict[str, float]
) -> None:
    config = TrainConfig("run", DataConfig("nowhere"), heads=[head], loss=LossConfig(**loss))
    with one_line(ConfigError, f"loss.{next(iter(loss))}: 0, so the head {head} has nothing to learn"):
        plan_run(config, script)


class Caught(Exception):
    """Ends a script when its parser is known."""


@pytest.fixture
def parsers(run: Run, monkeypatch: pytest.MonkeyPatch) -> dict[str, cli.Parser]:
    """The parser of each script."""
    found: dict[str, cli.Parser] = {}

    def catch(parser: cli.Parser, *_: object) -> None:
        found[script] = parser
        raise Caught

    for script in COMMANDS:
        with monkeypatch.context() as patched:
            patched.setattr(cli.Parser, "parse_known_args", catch)
            with pytest.raises(Caught):
                run(script)
    return found


def test_all_scripts_take_whole_options_once(run: Run, parsers: dict[str, cli.Parser]) -> None:
    for script, parser in parsers.items():
        for option in sorted(parser._option_string_actions.keys() - {"-h", "--help"}):
            with pytest.raises(ConfigError) as raised:
                parser.parse_known_args([f"{option}=1", f"{option}=1"])
            assert str(raised.value).startswith(f"{option}: given 2 times"), script
            known = [action for action in parser._actions if action.required]
            for action in known:
                action.required = False
            rest = parser.parse_known_args([f"{option[:-1]}=1"])[1]
            assert rest == [f"{option[:-1]}=1"], (script, option)


def test_options_are_spelled_alike(parsers: dict[str, cli.Parser]) -> None:
    options = {option for parser in parsers.values() for option in parser.options()}
    assert all(re.fullmatch(r"-h|--[a-z]+(_[a-z]+)*", option) for option in options), options
    last_words = {word: [one for one in options if one.endswith(word)] for word in ("store", "sampling", "multiplier")}
    assert last_words == {"store": ["--frame_store"], "sampling": [], "multiplier": ["--lagrange_multiplier"]}


@pytest.mark.parametrize(
    ("script", "arguments", "meant"),
    [
        ("audit", "--data a.json --out o --store s", "--frame_store"),
        ("convert", "videoalign --input a --out o.json --video_root d", "--video_dir"),
        ("evaluate", "--model m --data a --out o --frame-store s", "--frame_store"),
        ("score", "--model m --input a --out o.jsonl --multiplier 2", "--lagrange_multiplier"),
        ("prepare_videos", "--config c.yaml --out o --verfy", "--verify"),
        ("prepare_videos", "--config c.yaml --out o --pixels 3", "--min_pixels or --max_pixels"),
        ("serve", "--model m --prot 80", "--port"),
    ],
)
def test_an_old_or_wrong_spelling_is_answered_with_the_right_one(
    run: Run, script: str, arguments: str, meant: str
) -> None:
    with one_line(ConfigError, f"did you mean {meant}"):
        run(script, *arguments.split())


def test_an_empty_word_too_many_is_one_line(run: Run) -> None:
    with one_line(ConfigError, "'': no option takes it"):
        run("audit", "--data", "a.json", "--out", "o", "")


# Script, arguments; NO is not there.
PATHS = [
    ("audit", "--data NO --out o"),
    ("audit", "--data NO.json --out o"),
    ("audit", "--data CONFIG --out o --video_dir NO"),
    ("audit", "--data CONFIG --out o --frame_store NO"),
    ("calibrate", "--model NO --data CONFIG"),
    ("convert", "saferlhf --input NO --out o.json"),
    ("convert", "videoalign --input NO --out o.json"),
    ("dashboard", "NO --out p.html"),
    ("evaluate", "--model MODEL --data NO --out o"),
    ("evaluate", "--model MODEL --data CONFIG --out o --video_dir NO"),
    ("evaluate", "--model MODEL --data CONFIG --out o --frame_store NO"),
    ("evaluate", "--model MODEL --data CONFIG --out o --train_data NO"),
    ("evaluate", "--model MODEL --data CONFIG --out o --truth NO"),
    ("evaluate", "--model MODEL --data CONFIG --out o --random_backbone NO"),
    ("evaluate", "--model MODEL --data CONFIG --out o --compare NO"),
    ("evaluate", "--model NO --data CONFIG --out o"),
    ("evaluate", "--model MODEL --data CONFIG --out o --backbone NO"),
    ("evaluate_generator", "--model MODEL --prompts NO --videos a=m --out o"),
    ("evaluate_generator", "--model MODEL --prompts PROMPTS --videos a=NO --out o"),
    ("export", "--model NO --out o"),
    ("export", "--model MODEL --out o --evaluation NO"),
    ("prepare_videos", "--data NO --out o"),
    ("prepare_videos", "--config NO --out o"),
    ("prepare_videos", "--data CONFIG --out o --archive NO"),
    ("prepare_videos", "--data CONFIG --out o --video_dir NO"),
    ("report", "--evaluation NO --out o.html"),
    ("score", "--model MODEL --input NO --out o.jsonl"),
    ("score", "--model MODEL --input NO.parquet --out o.jsonl"),
    ("score", "--model MODEL --input NO.json --out o.jsonl"),
    ("score", "--model MODEL --input CONFIG --out o.jsonl --video_dir NO"),
    ("score", "--model NO --input CONFIG --out o.jsonl"),
    ("serve", "--model MODEL --port 0 --video_root NO"),
    ("serve", "--model MODEL --port 0 --api_key_file NO"),
    ("serve", "--model NO --port 0"),
    ("train", "--data.path NO"),
    ("train", "--data.path NO.json"),
    ("train", "--data.path CONFIG --data.video_dir NO"),
    ("train", "--data.path CONFIG --data.frame_store NO"),
    ("train", "--data.path CONFIG --data.validation_fraction 0 --model.backbone.path NO"),
    ("train", "--config NO"),
]


@pytest.mark.parametrize(("script", "arguments"), PATHS, ids=[f"{script}-{words}" for script, words in PATHS])
def test_a_path_that_is_absent_is_named(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, arguments: str
) -> None:
    """Also where it could be OWNER/NAME on a hub."""
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "m", {"joint": ("reward", "cost")})
    prompt = {"prompt_id": "p", "prompt_text": "a kite"}
    sides = {side: {"video_id": side, "video_path": f"{side}.mp4", **prompt} for side in ("video_0", "video_1")}
    pairs = [{"pair_id": "0", **prompt, **sides, "helpfulness": "video_0", "harmlessness": "video_1"}]
    (tmp_path / "config.json").write_text(json.dumps(pairs))
    (tmp_path / "prompts.json").write_text(json.dumps([prompt]))
    for side in sides:
        (tmp_path / f"{side}.mp4").touch()
    places = {"MODEL": "m", "CONFIG": "config.json", "PROMPTS": "prompts.json"}
    words = [places.get(word, word.replace("NO", "m/no")) for word in arguments.split()]
    with one_line(SafeRLHFVideoError, "m/no", ": no such file or folder"):
        if script == "train":
            monkeypatch.setattr(sys, "argv", ["train_reward.py", "--out", "run", *words])
            train_head("reward", "")
        else:
            run(script, *words)


def test_the_lines_of_a_launcher_after_an_error_are_explained(tmp_path: Path) -> None:
    arguments = ("scripts/train_reward.py", "--local_rank=0", "--out", tmp_path / "run", "--data.path", tmp_path / "no")
    error = f"error: {tmp_path / 'no'}: no such file or folder; correct the path"
    assert launch(*arguments, check=False).stderr.splitlines() == [error]
    launched = launch(*arguments, check=False, CROSS_RANK="0").stderr.splitlines()
    assert launched == [error, "(what follows is deepspeed, which ends all processes)"]
