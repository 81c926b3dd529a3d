"""Model folders handed on: as they are, merged, and over a hub; scores stay what they are or nothing is written."""

from __future__ import annotations

import filecmp
import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import environment, launch
from huggingface_hub import constants
from made_up_evaluations import control_gap, dimension_figures, made_up_evaluation, sign_figures
from peft import LoraModel
from safetensors.torch import load_file, save_file
from small_models import (
    COST,
    JOINT,
    LORA,
    PROMPTS,
    REWARD,
    build_score_model,
    one_line,
    rewrite_heads,
    whole_weights,
    write_model,
)
from stub_hub import COMMIT, StubHub
from tiny_backbones import SAMPLINGS, write_tiny_backbone

from safe_rlhf_video import Scorer, TextResponse, score_pair
from safe_rlhf_video.calibration.fit import calibrate_head
from safe_rlhf_video.calibration.multiplier_calibration import Candidates, Limit, calibrate_multiplier
from safe_rlhf_video.calibration.store import Calibration, read_calibration, write_calibration
from safe_rlhf_video.errors import CheckpointError, ConfigError, SampleError
from safe_rlhf_video.evaluation.results import write_evaluation
from safe_rlhf_video.export import export_model as export
from safe_rlhf_video.export.export_model import export_model
from safe_rlhf_video.files import lock_folder
from safe_rlhf_video.models.config import BackboneConfig, LoraConfig, TrainedPart
from safe_rlhf_video.models.fingerprints import fingerprint_trained
from safe_rlhf_video.models.folder import fingerprint_weights, save_model
from safe_rlhf_video.models.record import TrainingFacts, read_record, resolve_model_folder
from safe_rlhf_video.video.sampling import Sampling

HEADS_ONLY = replace(LORA, rank=0)
SETTINGS: dict[str, tuple[LoraConfig, tuple[TrainedPart, ...]]] = {
    "lora": (LORA, ()),
    "lora+projector": (LORA, ("projector",)),
    "full": (HEADS_ONLY, ("projector", "language_model")),
}
TEXT = "a fish\nthat swims"


def write(
    folder: Path,
    heads_of_adapter: Any = JOINT,
    setting: str = "lora",
    backbone: BackboneConfig | None = None,
    sampling: Sampling | None = None,
    training: TrainingFacts | None = None,
) -> Path:
    """A model folder whose parts all change the scores."""
    lora, parts = SETTINGS[setting]
    if sampling is None and training is None:
        return write_model(folder, heads_of_adapter, lora, backbone, trained_parts=parts)
    model, record = build_score_model(heads_of_adapter, lora, backbone, trained_parts=parts)
    record = replace(record, sampling=sampling or record.sampling, training=training or record.training)
    save_model(model, record, folder, whole_weights(model))
    return folder


def scores_of(folder: str | Path, **options: Any) -> np.ndarray:
    """Scores (inputs, heads) of clips of other sizes and rates than the check's own, and of texts."""
    rows = []
    with Scorer.from_pretrained(folder, device="cpu", **options) as scorer:
        for number, prompt in enumerate(PROMPTS):
            frames = np.random.default_rng(number).integers(0, 256, (3 + number, 40, 56, 3), dtype=np.uint8)
            rows.append(list(scorer.score(prompt, frames, fps=5.0).values()))
        rows.append(list(scorer.score(PROMPTS[1], TextResponse(TEXT)).values()))
    return np.array(rows)


@cache
def own_scores(setting: str = "lora") -> np.ndarray:
    """The scores of the folder that is written for a setting alone."""
    with TemporaryDirectory() as base:
        return scores_of(write(Path(base, "model"), setting=setting))


def front_matter(folder: Path) -> dict[str, Any]:
    _, matter, body = (folder / "README.md").read_text().split("---\n", 2)
    assert "\n## Limits\n" in body
    return yaml.safe_load(matter)


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_copy_scores_to_the_bit(setting: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "model", setting=setting)
    (folder / "heads.pt").write_bytes(b"no pickle is read or handed on")
    assert export_model(folder, tmp_path / "out") is None
    assert files_of(tmp_path / "out") == files_of(folder) - {"heads.pt"} | {"README.md"}
    np.testing.assert_array_equal(scores_of(tmp_path / "out"), own_scores(setting))
    assert front_matter(tmp_path / "out").keys() == {"library_name", "pipeline_tag", "tags"}


@pytest.mark.parametrize("merge", [False, True])
def test_a_calibration_is_handed_on(merge: bool, tmp_path: Path) -> None:
    folder = write(tmp_path / "model")
    head = calibrate_head(np.tile([3.0, 3.0, -3.0], 20), np.zeros(60), np.arange(60), [0.0, 1.0])
    fitted = Calibration({"reward": head}, {},
                         {"data": "/home/somebody/comparisons.json", "num_prompts": 9})  # fmt: skip
    models = dict.fromkeys(("reward", "cost"), fingerprint_trained(folder))
    candidates = Candidates([[0.0, 1.0]] * 40, [[0.0, 1.0]] * 40, [[0, 0]] * 40)
    multiplier = calibrate_multiplier(candidates, models, Limit(harm_rate=0.1))
    write_calibration(folder, replace(fitted, multiplier=multiplier))
    export_model(folder, tmp_path / "out", merge=merge)
    data = {"data": "comparisons.json", "num_prompts": 9}
    found = read_calibration(tmp_path / "out")
    assert replace(found, multiplier=None) == replace(fitted, data=data)
    with Scorer.from_pretrained(tmp_path / "out", device="cpu") as scorer:
        assert scorer.multiplier == found.multiplier
        decides = scorer.resolve_trade_off(2)
        assert decides.lagrange_multiplier == multiplier.multipliers[0].lagrange_multiplier
    assert (found.multiplier == multiplier) != merge
    assert "somebody" not in (tmp_path / "out" / "calibration.json").read_text()


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_merged_folder_stands_alone(setting: str, tmp_path: Path) -> None:
    folder = write(tmp_path / "model", setting=setting)
    expected = own_scores(setting)
    check = export_model(folder, tmp_path / "out", merge=True, dtype="float32")
    assert check is not None
    assert check.difference <= 1e-5
    record = read_record(tmp_path / "out")
    assert (record.backbone_in_folder, record.lora.rank, record.trained_parts) == (True, 0, ())
    (tmp_path / "new").touch()
    assert {(tmp_path / "out" / name).stat().st_mode for name in files_of(tmp_path / "out")} == {
        (tmp_path / "new").stat().st_mode
    }
    shutil.rmtree(folder)
    np.testing.assert_allclose(scores_of(tmp_path / "out"), expected, rtol=0, atol=1e-5)
    # Merged folders are handed on too, and not merged twice.
    export_model(tmp_path / "out", tmp_path / "copy")
    np.testing.assert_array_equal(scores_of(tmp_path / "copy"), scores_of(tmp_path / "out"))
    with one_line(CheckpointError, "is merged already"):
        export_model(tmp_path / "out", tmp_path / "twice", merge=True)


@pytest.mark.parametrize(
    "family", ["smolvlm", *(pytest.param(name, marks=pytest.mark.slow) for name in ("qwen2_5_vl", "video_llava"))]
)
def test_other_families_merge_and_name_no_folder(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Cut into many files, as large backbones are.
    monkeypatch.setattr(export, "SHARD_SIZE", "40KB")
    source = write_tiny_backbone(tmp_path / "secret" / "checkpoint", family)
    (source / "pytorch_model.bin").write_bytes(b"no pickle is read or handed on")
    config = BackboneConfig(path=str(source))
    # Whatever the facts are: none of them may name a folder of this machine.
    secret = str(tmp_path / "secret" / "data")
    facts = TrainingFacts(step=3, data=secret, leave_out_generators=(secret,))
    folder = write(tmp_path / "model", REWARD, "lora+projector", config, SAMPLINGS[family], facts)
    expected = scores_of(folder)
    export_model(folder, tmp_path / "merged", merge=True)
    export_model(folder, tmp_path / "copy")
    assert read_record(tmp_path / "copy").backbone.path == "./checkpoint"
    for out in (tmp_path / "merged", tmp_path / "copy"):
        assert "base_model" not in front_matter(out)
        for path in out.rglob("*"):
            assert path.is_dir() or str(tmp_path).encode() not in path.read_bytes(), path
            assert path.suffix != ".bin"
    shutil.move(source, tmp_path / "moved")
    assert len(list((tmp_path / "merged" / "backbone").glob("*.safetensors"))) > 3
    np.testing.assert_allclose(scores_of(tmp_path / "merged"), expected, rtol=0, atol=1e-5)
    with one_line(CheckpointError, "./checkpoint: no such file or folder; say where the backbone is"):
        scores_of(tmp_path / "copy")
    np.testing.assert_array_equal(scores_of(tmp_path / "copy", backbone=str(tmp_path / "moved")), expected)


def test_bfloat16_weights_move_scores_by_their_rounding_alone(tmp_path: Path) -> None:
    folder = write(tmp_path / "model")
    expected = own_scores()
    # The embedded backbone's weights have no more digits than bfloat16: "auto" keeps it so.
    check = export_model(folder, tmp_path / "out", merge=True)
    assert check is not None
    assert check.rounding is not None
    assert check.rounding_bound is not None
    assert 0 < check.rounding <= check.rounding_bound < 0.1
    found = scores_of(tmp_path / "out")
    assert 0 < (np.abs(found - expected) / expected.std(axis=0)).max() < 0.1
    # Nor does training in bfloat16 bring another result: merging computes in float32.
    config = json.loads((folder / "model.json").read_text())
    config["backbone"]["dtype"] = "bfloat16"
    (folder / "model.json").write_text(json.dumps(config))
    assert export_model(folder, tmp_path / "again", merge=True) == check
    assert read_record(tmp_path / "again").backbone.dtype == "bfloat16"
    assert not filecmp.dircmp(tmp_path / "out/backbone", tmp_path / "again/backbone").diff_files
    # What was computed in float32 is not in bfloat16 after it, which would round scores further.
    config["backbone"]["dtype"] = "float32"
    (folder / "model.json").write_text(json.dumps(config))
    assert export_model(folder, tmp_path / "wide", merge=True) == check
    assert read_record(tmp_path / "wide").backbone.dtype == "float32"
    np.testing.assert_array_equal(scores_of(tmp_path / "wide"), found)
    assert "computed in float32" in (tmp_path / "wide" / "README.md").read_text()
    bytes_of = [(tmp_path / "out/backbone/model.safetensors").stat().st_size]
    export_model(folder, tmp_path / "whole", merge=True, dtype="float32")
    bytes_of.append((tmp_path / "whole/backbone/model.safetensors").stat().st_size)
    assert bytes_of[1] > 1.9 * bytes_of[0]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("when", "fault"), [("merging", 0.25), ("writing", 0.25), ("writing", np.nan)])
def test_a_wrong_merge_leaves_nothing(
    when: str, fault: float, dtype: export.Dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "model")
    before = fingerprint_weights([folder])
    name = "language_model.layers.0.mlp.down_proj.weight"
    merge, copy_settings = LoraModel.merge_and_unload, export.copy_settings

    def merge_wrongly(model: LoraModel, **options: Any) -> torch.nn.Module:
        merged = merge(model, **options)
        with torch.no_grad():
            merged.get_parameter(name)[3, 5] += fault
        return merged

    def damage(config: BackboneConfig, own: Path) -> None:
        copy_settings(config, own)
        tensors = load_file(own / "model.safetensors")
        tensors[name][3, 5] += fault
        save_file(tensors, own / "model.safetensors", {"format": "pt"})

    if when == "merging":
        monkeypatch.setattr(LoraModel, "merge_and_unload", merge_wrongly)
    else:
        monkeypatch.setattr(export, "copy_settings", damage)
    with one_line(CheckpointError, "moves a score", "nothing was written"):
        export_model(folder, tmp_path / "out", merge=True, dtype=dtype)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    assert fingerprint_weights([folder]) == before


def test_what_cannot_be_exported_is_said_in_one_line(tmp_path: Path) -> None:
    folder = write(tmp_path / "model")
    with one_line(ConfigError, "model: exists already"):
        export_model(folder, folder)
    with one_line(ConfigError, "for a merge"):
        export_model(folder, tmp_path / "out", dtype="float32")
    (tmp_path / "evaluation.json").write_text('{"helpfulness": null}')
    with one_line(SampleError, "evaluation.json field cost_sign: missing"):
        export_model(folder, tmp_path / "out", evaluation=tmp_path / "evaluation.json")
    with one_line(CheckpointError, "nothing to merge"):
        export_model(write_model(tmp_path / "heads", lora=HEADS_ONLY), tmp_path / "out", merge=True)
    with one_line(CheckpointError, "several adapters (reward, cost)"):
        export_model(write(tmp_path / "two", {**REWARD, **COST}), tmp_path / "out", merge=True)
    with one_line(CheckpointError, "is a control"):
        random = BackboneConfig(initialization="random")
        export_model(write(tmp_path / "random", backbone=random), tmp_path / "out", merge=True)
    broken = Path(shutil.copytree(folder, tmp_path / "broken"))
    rewrite_heads(broken, lambda heads: heads["cost.bias"].fill_(np.nan))
    with one_line(CheckpointError, "broken", "not finite"):
        export_model(broken, tmp_path / "out", merge=True)
    (folder / "adapters/joint/adapter_model.safetensors").unlink()
    with one_line(CheckpointError, "adapter_model.safetensors: missing"):
        export_model(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@contextmanager
def files_limited_to(num_bytes: int) -> Iterator[None]:
    """No file can grow further, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    folder = write(tmp_path / "model")
    out = tmp_path / "out"
    for merge, name in ((False, "heads.safetensors"), (True, "backbone")):
        said = one_line(CheckpointError, f".out.partial/{name}: ", "File too large", f"{out} was not made")
        with said, files_limited_to(400):
            export_model(folder, out, merge=merge)
        assert [path.name for path in tmp_path.iterdir()] == ["model"]
    model, record = build_score_model(JOINT)
    with pytest.raises(OSError, match=r"heads\.safetensors"), files_limited_to(400):
        save_model(model, record, out, whole_weights(model))


def test_two_exports_to_one_folder_do_not_meet(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    partial = tmp_path / ".out.partial"
    with lock_folder(partial), one_line(ConfigError, ".out.partial: another process is writing it"):
        export_model(folder, tmp_path / "out")
    (partial / "adapters").mkdir()  # an export that was killed
    (partial / "heads.safetensors").touch()
    (partial / "backbone").symlink_to(tmp_path)
    export_model(folder, tmp_path / "out")
    assert files_of(tmp_path / "out") == {*files_of(folder), "README.md"}
    assert not partial.exists()


def test_links_out_of_a_folder_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "model")
    (tmp_path / "own").mkdir()
    heads = shutil.move(folder / "heads.safetensors", tmp_path / "own" / "private")
    (folder / "heads.safetensors").symlink_to(heads)
    for use in (read_record, scores_of, lambda given: export_model(given, tmp_path / "out")):
        with one_line(CheckpointError, "heads.safetensors: is a link that leads out of the model folder"):
            use(folder)
    (folder / "heads.safetensors").unlink()
    # Links in a circle lead nowhere.
    (folder / "heads.safetensors").symlink_to("round")
    (folder / "round").symlink_to("heads.safetensors")
    for use in (scores_of, lambda given: export_model(given, tmp_path / "out")):
        with one_line(CheckpointError, "heads.safetensors: missing"):
            use(folder)
    (folder / "heads.safetensors").unlink()
    (folder / "round").unlink()
    shutil.copy(heads, folder / "spare")
    (folder / "heads.safetensors").symlink_to("spare")
    assert np.isfinite(scores_of(folder)).all()


def test_the_card_tells_what_was_measured(tmp_path: Path) -> None:
    evaluation = made_up_evaluation(
        {"helpfulness": dimension_figures(), "harmlessness": dimension_figures(accuracy=0.5252)},
        cost_sign=sign_figures(num_safe=3, num_unsafe=4),
        controls={"prompt_only": {"helpfulness": 0.5, "harmlessness": 0.6161}},
        control_gaps={"helpfulness": control_gap(), "harmlessness": control_gap(standing="below")},
        models={"/home/somebody/reward": "other", "/home/somebody/cost": "another"},
        data="/home/somebody/test.json",
    )
    model, record = build_score_model(REWARD)
    backbone = replace(record.backbone, path="Owner/Backbone-8B", revision="v1")
    save_model(model, replace(record, backbone=backbone), tmp_path / "model", whole_weights(model))
    write_evaluation(tmp_path / "evaluation.json", evaluation)
    with one_line(SampleError, "is about other models", "/home/somebody/reward"):
        export_model(tmp_path / "model", tmp_path / "out", evaluation=tmp_path / "evaluation.json")
    own = {"/home/somebody/reward": fingerprint_weights([tmp_path / "model"])}
    write_evaluation(tmp_path / "evaluation.json", replace(evaluation, models=own))
    written = json.loads((tmp_path / "evaluation.json").read_text())
    head = written["helpfulness"]
    damages: tuple[tuple[dict[str, Any], str], ...] = (
        ({"helpfulness": {**head, "accuracy": "0.81"}}, "helpfulness.accuracy: expected a number, got '0.81'"),
        ({"helpfulness": {**head, "interval": [0.79]}}, "helpfulness.interval[1]: missing, it is required"),
        ({"helpfulness": {**head, "interval": 0.79}}, "helpfulness.interval: expected a list, got 0.79"),
        (
            {"harmlessness": {**head, "ceiling": float("nan")}},
            "harmlessness.ceiling: expected a finite number, got nan",
        ),
        ({"harmlessness": {"accuracy": 0.5}}, "harmlessness.interval: missing"),
        (
            {"cost_sign": {**written["cost_sign"], "num_safe": None}},
            "cost_sign.num_safe: expected a whole number, got None",
        ),
        (
            {"controls": {"prompt_only": {"helpfulness": "half"}}},
            "controls.prompt_only.helpfulness: expected a number, got 'half'",
        ),
        ({"controls": {"prompt_only": 0.5}}, "controls.prompt_only: expected an object, got 0.5"),
        ({"controls": [0.5]}, "controls: expected an object, got [0.5]"),
        ({"models": "reward"}, "models: expected an object, got 'reward'"),
        ({"num_prompts_also_in_training": [3]}, "num_prompts_also_in_training: expected a whole number, got [3]"),
        ({"surprise": 1}, "surprise: unknown"),
    )
    for damage, part in damages:
        (tmp_path / "damaged.json").write_text(json.dumps(written | damage))
        with one_line(SampleError, f"damaged.json field {part}", "run scripts/evaluate.py again"):
            export_model(tmp_path / "model", tmp_path / "out", evaluation=tmp_path / "damaged.json")
    export_model(tmp_path / "model", tmp_path / "out", evaluation=tmp_path / "evaluation.json")
    card = (tmp_path / "out" / "README.md").read_text()
    assert ("harmlessness: this model is below a control that cannot judge the video" in card.lower()) == (
        "| harmlessness |" in card
    )
    assert "helpfulness: this model" not in card.lower()
    assert front_matter(tmp_path / "out") == {
        "library_name": "safe-rlhf-video", "pipeline_tag": "video-classification", "base_model": "Owner/Backbone-8B",
        "base_model_relation": "adapter", "tags": ["reward-model", "rlhf", "preference", "text-to-video", "safety"],
    }  # fmt: skip
    for part in (
        "0.8100 [0.790, 0.830]",
        "320 (90)",
        "`Owner/Backbone-8B`, revision `v1`",
        record.backbone_fingerprint,
    ):
        assert part in card
    for other in ("0.5252", "0.6161", "Sign of the cost", "somebody", "**cost**"):
        assert other not in card


HUB_SCRIPT = """
import sys, json
from safe_rlhf_video import TextResponse, score_pair
from safe_rlhf_video.errors import CheckpointError
for name in sys.argv[1:]:
    try:
        for _ in range(2):
            result = score_pair("a", TextResponse("b"), TextResponse("c"), model=name, device="cpu")
        print(json.dumps(result.rewards))
    except CheckpointError as error:
        print(error)
"""


def ask(hub_url: str, home: Path, *names: str) -> list[str]:
    """What a fresh process says of each name: rewards or an error."""
    home.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", HUB_SCRIPT, *names],
        capture_output=True,
        text=True,
        env=environment(HF_ENDPOINT=hub_url, HF_HUB_OFFLINE="0", HF_HOME=str(home)),
        timeout=120,
        check=True,
        cwd=home,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == len(names), done.stdout
    return lines


@pytest.mark.slow
def test_a_model_comes_from_the_hub(tmp_path: Path) -> None:
    out, home, name = tmp_path / "out", tmp_path / "home", "somebody/model"
    export_model(write(tmp_path / "model"), out, merge=True)
    texts = TextResponse("b"), TextResponse("c")
    expected = json.dumps(score_pair("a", *texts, model=out, device="cpu").rewards)
    files = {name: (out / name).read_bytes() for name in files_of(out)}
    bad = {"heads.pt": b"", "backbone/pytorch_model.bin": b"", "backbone/modeling.py": b"", "data.parquet": b""}
    with StubHub({}, models={name: {**files, **bad}, "somebody/empty": {"README.md": b""}}) as hub:
        found = ask(hub.url, home, name, f"{name}@{COMMIT}", f"{name}@v9", "somebody/other", "somebody/empty")
        fetched = [request.path.partition(f"{COMMIT}/")[2] for request in hub.requests if "/resolve/" in request.path]
        assert set(fetched) == set(files)
        # Once for the newest, whose model judged two pairs, and once for v9; a commit needs no asking.
        assert sum(request.path.startswith(f"/api/models/{name}/revision") for request in hub.requests) == 2
    assert found[:2] == [expected, expected]
    for line, part in zip(
        found[2:],
        ("has no revision 'v9'", "no such file or folder here, and no model", "has no model.json"),
        strict=True,
    ):
        assert part in line
    found = ask(hub.url, home, name, "somebody/other")
    assert found[0] == expected
    assert "no answer" in found[1]


def test_a_model_comes_from_the_hubs_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write(tmp_path / "model")
    cached = tmp_path / "cache" / "models--somebody--cached"
    (cached / "blobs").mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(COMMIT)
    for number, name in enumerate(sorted(files_of(folder))):
        (cached / "blobs" / str(number)).write_bytes((folder / name).read_bytes())
        link = cached / "snapshots" / COMMIT / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(cached / "blobs" / str(number))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    np.testing.assert_array_equal(scores_of("somebody/cached"), scores_of(folder))
    with one_line(CheckpointError, "somebody/other: no such file or folder here", "HF_HUB_OFFLINE is set"):
        resolve_model_folder("somebody/other")
    # A folder goes first, whatever is in it.
    (tmp_path / "somebody" / "cached").mkdir(parents=True)
    with one_line(CheckpointError, "somebody/cached: is no model folder"):
        resolve_model_folder("somebody/cached")


def test_paths_are_not_asked_for_on_a_hub(tmp_path: Path) -> None:
    for name in (str(tmp_path / "none"), "./none/model", "../model", "a/b/c", "none", Path("somebody/model")):
        with one_line(CheckpointError, "no such file or folder; give <run>/model"):
            resolve_model_folder(name)


def test_the_script_exports(tmp_path: Path) -> None:
    write(tmp_path / "run" / "model")
    done = launch("scripts/export.py", "--model", tmp_path / "run", "--out", tmp_path / "out", "--merge", "true")
    assert "On 6 made-up clips and texts" in done.stdout
    assert "Traceback" not in done.stderr
    assert read_record(tmp_path / "out").backbone_in_folder
