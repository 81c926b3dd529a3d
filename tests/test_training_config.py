"""Configurations: those shipped parse, and a slip at any level is one line. No torch is needed to say so."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import asdict, replace
from functools import reduce
from itertools import combinations, takewhile
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, environment, launch

from safe_rlhf_video.config_parser import parse_config
from safe_rlhf_video.errors import ConfigError
from safe_rlhf_video.field_docs import read_sections
from safe_rlhf_video.heads import HEAD_GROUPS, HEADS
from safe_rlhf_video.training.config import OPERATIONAL_FIELDS, DataConfig, EngineConfig, TrainConfig
from safe_rlhf_video.training.run_folder import flatten
from safe_rlhf_video.video.sampling import Sampling

SHIPPED = sorted((ROOT / "configs").rglob("*.yaml"))
MINIMAL = {"out": "run", "data": {"path": "data"}}


def parse(path: Path, *overrides: str) -> TrainConfig:
    return parse_config(TrainConfig, ["--config", str(path), *overrides], "test")


def is_training(path: Path) -> bool:
    return "optimization" in yaml.safe_load(path.read_text())


TRAINING = [path for path in SHIPPED if is_training(path)]
shipped = pytest.mark.parametrize("path", TRAINING, ids=lambda path: str(path.relative_to(ROOT)))


def head_of(path: Path) -> str:
    """The comment at the head of a config."""
    return "".join(takewhile(lambda line: line.startswith("#"), path.read_text().splitlines(keepends=True)))


@shipped
def test_shipped_config_names_command_result_and_heads(path: Path) -> None:
    """The first command at its head is the one that trains the heads that the config names."""
    head = head_of(path)
    script, name = re.findall(r"scripts/train_(\w+)\.py --config (\S+)", head)[0]
    assert ROOT / name == path
    assert re.search(r"Expect|no accuracy is claimed", head)
    from safe_rlhf_video.training.run import choose_heads

    assert choose_heads(parse(path), script)


@shipped
def test_shipped_config_sets_only_what_differs_from_the_defaults(path: Path) -> None:
    values = yaml.safe_load(path.read_text())
    defaults = asdict(parse_config(TrainConfig, ["--out", "run", "--data.path", "data"], "test"))
    for *above, name in places(values):
        value, default = (section_at(whole, (*above, name)) for whole in (values, defaults))
        assert isinstance(value, dict) or value != default, ".".join([*above, name])


@pytest.mark.parametrize(("script", "config"), [("cost", "reward"), ("reward", "cost"), ("moderation", "joint"),
                                                ("reward", "moderation"), ("cost", "quickstart")])  # fmt: skip
def test_a_script_refuses_a_config_of_other_heads(script: str, config: str) -> None:
    """Before any data is read: else configs/cost.yaml would train a reward into outputs/cost."""
    from safe_rlhf_video.training.loop import train

    with pytest.raises(ConfigError) as raised:
        train(parse(ROOT / "configs" / f"{config}.yaml"), script)
    assert re.search(r"^heads: .*: this script trains .*; use scripts/train_\w+\.py for these$", str(raised.value))


def test_any_heads_have_a_script_and_other_scripts_name_it() -> None:
    from safe_rlhf_video.training.run import choose_heads

    kinds = ("reward", "cost", "aesthetics", "harm_any", "text_moderation")
    scripts = ("reward", "cost", "moderation")
    for heads in (chosen for size in (1, 2, 3) for chosen in combinations(kinds, size)):
        config = TrainConfig(out="run", data=DataConfig("data"), heads=list(heads))
        refusals = {}
        for script in scripts:
            try:
                assert set(choose_heads(config, script)) >= set(heads) - set(HEAD_GROUPS)
            except ConfigError as error:
                refusals[script] = str(error)
        takers = set(scripts) - refusals.keys()
        assert takers, heads
        for line in refusals.values():
            assert re.search(r"scripts/train_(\w+)\.py", line)[1] in takers


def test_the_page_of_fields_is_up_to_date(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "tools")
    from write_configuration_docs import PAGE, write_page

    assert PAGE.read_text() == write_page(), "run python tools/write_configuration_docs.py"


def section_at(values: dict[str, Any], place: tuple[str, ...]) -> Any:
    return reduce(lambda section, name: section[name], place, values)


def places(values: dict[str, Any], *above: str) -> Iterator[tuple[str, ...]]:
    """Every key of a nested mapping, by its path."""
    for name, value in values.items():
        yield (*above, name)
        if isinstance(value, dict):
            yield from places(value, *above, name)


@pytest.mark.parametrize("name", [*HEADS, *HEAD_GROUPS])
def test_every_head_can_be_named(name: str) -> None:
    config = parse_config(TrainConfig, ["--out", "run", "--data.path", "data", "--heads", f"[{name}]"], "test")
    assert config.heads == [name]


@pytest.mark.parametrize("keys_of_a_section", [1, pytest.param(None, marks=pytest.mark.slow)])
def test_misspelt_key_at_any_level_is_one_line(tmp_path: Path, keys_of_a_section: int | None) -> None:
    """Every key of the config and of every section in it, or one of each."""
    values = asdict(parse_config(TrainConfig, ["--out", "run", "--data.path", "data"], "test"))
    values["engine"]["deepspeed"] = {"steps_per_print": 10}
    sections = [(), *(place for place in places(values) if isinstance(section_at(values, place), dict))]
    for place in sections:
        for name in list(section_at(values, place))[:keys_of_a_section]:
            broken = deepcopy(values)
            section = section_at(broken, place)
            section[f"{name}x"] = section.pop(name)
            path = tmp_path / "broken.yaml"
            path.write_text(yaml.safe_dump(json.loads(json.dumps(broken))))
            with pytest.raises(ConfigError) as raised:
                parse(path)
            assert name in str(raised.value)
            assert "\n" not in str(raised.value)
    assert len(sections) == 12


@pytest.mark.parametrize(
    ("slip", "named"),
    [
        ({"outt": "x"}, "outt"),
        ({"heads": ["reward", "harm_crimes"]}, "there is no head 'harm_crimes'; did you mean harm_crime"),
        ({"heads": ["xyzzy"]}, "there is no head 'xyzzy'; give some of reward, cost"),
        ({"data": {"path": "data", "wokers": 1}}, "wokers"),
        ({"model": {"lora": {"rnk": 4}}}, "rnk"),
        ({"model": {"lora": {"rank": "many"}}}, "rank"),
        ({"model": {"lora": {"rank": -1}}}, "model.lora.rank"),
        ({"model": {"backbone": {"dtype": "float16"}}}, "dtype"),
        ({"data": {"path": "data", "validation_fraction": 1.0}}, "data.validation_fraction"),
        ({"data": {"path": "data", "timeout_s": float("inf")}}, "data.timeout_s"),
        ({"optimization": {"epochs": 1.5}}, "epochs"),
        ({"optimization": {"epochs": 0}}, "optimization.epochs"),
        ({"optimization": {"epochs": 10**18}}, "optimization.epochs: expected 1 to 1,000,000"),
        ({"optimization": {"learning_rate": "fast"}}, "learning_rate"),
        ({"optimization": {"learning_rate": float("nan")}}, "optimization.learning_rate"),
        ({"optimization": {"betas": [0.9, 1.0]}}, "optimization.betas"),
        ({"optimization": {"betas": [0.9]}}, "betas"),
        ({"loss": {"sign": -1.0}}, "loss.sign"),
        ({"loss": {"comparison": 0.0, "sign": 0.0}}, "nothing to learn"),
        ({"engine": {"zero_stage": 4}}, "zero_stage"),
        ({"engine": {"zero_stage": 3, "compile": True}}, "engine.compile"),
        (
            {"engine": {"zero_stage": 3, "deepspeed": {"zero_optimization": {"zero_hpz_partition_size": 2}}}},
            "zero_hpz_partition_size",
        ),
        ({"engine": {"deepspeed": {"zero_optimisation": {}}}}, "zero_optimisation"),
        ({"engine": {"deepspeed": {"zero_optimization": 2}}}, "engine.deepspeed.zero_optimization"),
        ({"engine": {"deepspeed": {"optimizer": {}}}}, "engine.deepspeed.optimizer"),
        ({"checkpoint": {"keep_last": 0}}, "checkpoint.keep_last"),
        ({"tracking": {"wandb": "sometimes"}}, "wandb"),
        ({"seed": -1}, "seed"),
    ],
)
def test_wrong_value_is_one_line_that_names_it(tmp_path: Path, slip: dict[str, Any], named: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({**MINIMAL, **slip}))
    with pytest.raises(ConfigError) as raised:
        parse(path)
    assert named in str(raised.value)
    assert "\n" not in str(raised.value)


def test_misspelt_key_of_deepspeed_is_one_line() -> None:
    from safe_rlhf_video.training.engine import build_deepspeed_config

    config = parse_config(TrainConfig, ["--out", "run", "--data.path", "data"], "test")
    offloads = ({"offload_optimizer": {}}, {"cpu_offload": True}, {"cpu_offload_use_pin_memory": True})
    slips = ({"reduce_bukket_size": 5}, {"reduce_bucket_size": "large"}, {"stage": 2}, *offloads)
    for settings in (*({"zero_optimization": zero} for zero in slips), {"tensorboard": {"enable": True}}):
        with pytest.raises(ConfigError, match=r"engine\.deepspeed") as raised:
            build_deepspeed_config(replace(config, engine=EngineConfig(deepspeed=settings)))
        (named,) = next(iter(settings.values()))  # type: ignore[call-overload]
        assert named in str(raised.value)
        assert "\n" not in str(raised.value)


def test_overrides_and_the_launchers_argument(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({**MINIMAL, "model": {"lora": {"rank": 4}}}))
    config = parse(path, "--local_rank=1", "--model.lora.alpha", "3", "--optimization.learning_rate", "1e-3")
    assert (config.model.lora.rank, config.model.lora.alpha) == (4, 3.0)
    assert config.optimization.learning_rate == 1e-3
    assert config.data.path == "data"


def test_operational_fields_exist() -> None:
    config = parse_config(TrainConfig, ["--out", "run", "--data.path", "data"], "test")
    assert set(OPERATIONAL_FIELDS) <= set(flatten(asdict(config)))


def test_help_says_what_each_field_means() -> None:
    done = launch("scripts/train_reward.py", "--help")
    assert not done.stderr
    blocks = re.findall(r"^  --([\w.]+) (\S.*)\n((?:      .*\n)+)", done.stdout, re.MULTILINE)
    described = {path: " ".join(meaning.split()) for path, _, meaning in blocks}
    fields = {one.path: one for section in read_sections(TrainConfig) for one in section.fields}
    assert described.keys() == fields.keys() == flatten(asdict(TrainConfig("run", DataConfig("data")))).keys()
    for path, one in fields.items():
        assert described[path] == f"{one.meaning} {f'Default: {one.default}.' if one.default else 'Required.'}"
        assert len(one.meaning.split()) >= 2, path
        assert not path.endswith("_s") or "econds" in one.meaning, path
    for section in read_sections(TrainConfig)[1:]:
        assert f"\n{section.path}: {section.summary}\n" in done.stdout
    assert "<class" not in done.stdout


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--optimization.epoch", "1"), "there is no option --optimization.epoch; did you mean --optimization.epochs"),
        (("--epochs", "1"), "there is no option --epochs; did you mean --optimization.epochs?"),
        (("--frame_store", "x"), "there is no option --frame_store; did you mean --data.frame_store?"),
        (("--see", "1"), "there is no option --see; did you mean --seed?"),
        (("--seed", "1", "--seed=2"), "--seed: given 2 times; give it once"),
        (("--heads", "[reward]", "cost"), "cost: no option takes it"),
        (("--heads", "reward"), "heads: expected a list such as [a,b], or null, got reward"),
        (("--optimization.epochs", "1.5"), "optimization.epochs: expected a whole number, got 1.5"),
        (("--dry_run", "perhaps"), "dry_run: expected true or false, got perhaps"),
        (("--sampling.num_frames",), "--sampling.num_frames: needs a value; --help says which"),
        (("--heads", "--seed", "1"), "--heads: needs a value; --help says which"),
        (("--config", "no.yaml"), "no.yaml: no such file or folder; correct the path"),
    ],
)
def test_a_slip_on_the_command_line_is_one_line(words: tuple[str, ...], line: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_config(TrainConfig, ["--out", "run", "--data.path", "data", *words], "test")
    assert str(raised.value).startswith(line)
    assert "\n" not in str(raised.value)


def test_what_is_required_is_named_with_its_option() -> None:
    with pytest.raises(ConfigError, match=r"^data\.path: missing; give --data\.path, or set it in the file"):
        parse_config(TrainConfig, ["--out", "run"], "test")


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("optimizer: {}", "there is no field optimizer; did you mean optimization?"),
        ("optimization: {lr: {}}", "there is no field optimization.lr; "),
        ("epochs: 2", "there is no field epochs; did you mean optimization.epochs?"),
        ("optimization.epochs: 2", "there is no field optimization.epochs; write epochs in the section optimization"),
        ("seed: 1\nseed: 2", "seed is there twice"),
        ("loss: {sign: 1}\nloss: {harm: 2}", "loss is there twice"),
        ("engine: {deepspeed: {steps_per_print: 1, steps_per_print: 2}}", "steps_per_print is there twice"),
        ("optimization: 3", "optimization: expected a section of fields"),
        ("optimization: [1]", "optimization: expected a section of fields"),
        ("[1]", "expected a section of fields"),
        ("a: [b", "is not YAML"),
        pytest.param("[" * 3000, "nested too deeply", id="brackets"),
        ("engine: {deepspeed: &one {again: *one}}", "nested too deeply"),
    ],
)
def test_no_key_of_a_file_is_passed_over(tmp_path: Path, text: str, line: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as raised:
        parse(path, "--out", "run", "--data.path", "data")
    assert line in str(raised.value)
    assert str(raised.value).startswith(f"{path}: ")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["", "# nothing\n", "optimization:\n  # epochs: 1\n", "{}"])
def test_an_empty_file_or_section_sets_nothing(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    assert parse(path, "--out", "run", "--data.path", "d") == TrainConfig("run", DataConfig("d"))


def test_the_default_backbone_takes_the_default_sampling() -> None:
    from safe_rlhf_video.models.backbones import check_sampling

    config = parse_config(TrainConfig, ["--out", "run", "--data.path", "data"], "test")
    check_sampling(config.model.backbone, config.sampling)
    assert config.sampling == Sampling(num_frames=8, min_pixels=1024, max_pixels=1024, size_multiple=8)
    few = parse_config(TrainConfig, ["--out", "run", "--data.path", "data", "--sampling.num_frames", "2"], "test")
    assert few.sampling == replace(config.sampling, num_frames=2)
    sized = ["--out", "run", "--data.path", "data", "--sampling.max_pixels", "65536"]
    assert parse_config(TrainConfig, sized, "test").sampling == Sampling(max_pixels=65536)  # no size is overruled
    other = parse_config(TrainConfig, ["--out", "run", "--data.path", "d", "--model.backbone.path", "Qwen/x"], "test")
    assert other.sampling == Sampling()


def test_flags_may_stand_bare(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({**MINIMAL, "optimization": {"learning_rate": 0.5}}) + "seed: !!int 3\n")
    for words in (("--dry_run", "--tracking.media", "false"), ("--tracking.media=false", "--dry_run"),
                  ("--dry_run", "true", "--tracking.media", "false")):  # fmt: skip
        config = parse(path, *words)
        assert (config.dry_run, config.tracking.media, config.seed) == (True, False, 3)


def test_parsing_arguments_imports_no_framework() -> None:
    code = (
        "import sys, safe_rlhf_video, safe_rlhf_video.config_parser, safe_rlhf_video.training.config as config\n"
        "import safe_rlhf_video.scoring.score_rows\n"  # which reports wrong rows at once
        "safe_rlhf_video.config_parser.parse_config(config.TrainConfig, ['--out', 'run', '--data.path', 'data'], '')\n"
        "print(sorted({'torch', 'deepspeed', 'transformers', 'peft', 'wandb', 'datasets'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True)
    assert done.stdout.strip() == "[]"
