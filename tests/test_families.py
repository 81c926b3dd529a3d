"""Every backbone family, on a tiny random checkpoint with the hub's files: inputs, scores, model folders, errors."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import (
    COST,
    JOINT,
    LORA,
    PROMPTS,
    REWARD,
    build_score_model,
    noise_video,
    one_line,
    score,
    whole_weights,
)
from tiny_backbones import SAMPLINGS, each_family_with, edit_json, write_tiny_backbone
from transformers import dynamic_module_utils

from safe_rlhf_video.errors import CheckpointError, ConfigError, SampleError
from safe_rlhf_video.models import backbones
from safe_rlhf_video.models.backbones import Backbone, check_sampling, load_backbone, load_family, load_reader
from safe_rlhf_video.models.config import BackboneConfig
from safe_rlhf_video.models.families import FAMILIES
from safe_rlhf_video.models.families.smolvlm import number_words
from safe_rlhf_video.models.folder import load_models, save_model
from safe_rlhf_video.models.inputs import build_inputs
from safe_rlhf_video.models.score_model import ScoreModel
from safe_rlhf_video.responses import Response, TextResponse
from safe_rlhf_video.video.sampling import Sampling, Video, sample_video

CLIPS = (noise_video(4, 16, 48, 0), noise_video(1, 32, 32, 1), noise_video(3, 48, 24, 2), noise_video(9, 48, 48, 3))
TEXTS = (TextResponse("a red circle"), TextResponse("ich weiß es nicht, frag 🐟 " * 3), TextResponse(""))


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def folder(family: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_backbone(tmp_path_factory.mktemp("backbones") / family, family)


@pytest.fixture(scope="module")
def backbone(folder: Path) -> Backbone:
    return load_backbone(BackboneConfig(path=str(folder)))


@pytest.fixture(scope="module")
def joint(folder: Path) -> tuple[ScoreModel, Backbone]:
    """A model with both heads, and its backbone (which the adapters have changed)."""
    config = BackboneConfig(path=str(folder))
    loaded = load_backbone(config)
    model = ScoreModel(loaded, JOINT, LORA).eval()
    model.load_state_dict(build_score_model(JOINT, backbone=config)[0].state_dict())
    return model, loaded


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "backbone"))


def sample(family: str, clips: Sequence[Video] = CLIPS) -> list[Video]:
    return [sample_video(clip.frames, clip.timestamps, SAMPLINGS[family]) for clip in clips]


def mixture(family: str) -> list[Response]:
    """Clips of different sizes and lengths, where the family takes them, among texts."""
    videos = sample(family)
    return [videos[0], TEXTS[0], videos[1], videos[2], TEXTS[1], videos[3], TEXTS[2]]


# --- invariants -------------------------------------------------------------------------------------------------------


def test_batch_size_order_padding_and_mixture_leave_scores_alone(
    joint: tuple[ScoreModel, Backbone], family: str
) -> None:
    model, backbone = joint
    prompts, responses = [*PROMPTS[:4], *PROMPTS[:3]], mixture(family)
    alone = [score(model, backbone, [prompt], [one]) for prompt, one in zip(prompts, responses, strict=True)]
    together = score(model, backbone, prompts, responses)
    turned = score(model, backbone, prompts[::-1], responses[::-1])
    # One long neighbour pads a short one far.
    padded = score(model, backbone, [prompts[2], PROMPTS[2] * 2], [responses[2], responses[0]])
    for head in ("reward", "cost"):
        single = np.array([values[head][0] for values in alone])
        assert np.ptp(single) > 1e-2  # else nothing is compared
        assert abs(together[head] - single).max() <= 1e-5
        assert abs(turned[head][::-1] - single).max() <= 1e-5
        assert abs(padded[head][0] - single[2]) <= 1e-5


def test_every_frame_and_the_prompt_count(joint: tuple[ScoreModel, Backbone], family: str) -> None:
    model, backbone = joint
    video = sample(family)[0]
    scores = [score(model, backbone, ["a"], [video])["reward"][0], score(model, backbone, ["b"], [video])["reward"][0]]
    for number in range(len(video.frames)):
        frames = video.frames.copy()
        frames[number] = 255 - frames[number]
        scores.append(score(model, backbone, ["a"], [Video(frames, video.timestamps)])["reward"][0])
    assert len({round(value, 6) for value in scores}) == len(scores)


def test_inputs_hold_as_many_video_tokens_as_counted(backbone: Backbone, family: str) -> None:
    responses = mixture(family)
    inputs = build_inputs(backbone, ["a"] * len(responses), responses, "cpu")
    video_id = backbone.tokenizer.convert_tokens_to_ids(backbone.family.video_token.token)
    found = ((inputs["input_ids"] == video_id) & (inputs["attention_mask"] == 1)).sum(1).tolist()
    expected = [
        backbone.family.count_video_tokens(*one.frames.shape[:3]) if isinstance(one, Video) else 0 for one in responses
    ]
    assert found == expected
    assert len(set(expected)) > 2
    assert (inputs["attention_mask"].diff(dim=1) <= 0).all()  # padding is on the right


def test_batch_of_texts_has_no_pixels(backbone: Backbone) -> None:
    inputs = build_inputs(backbone, list(PROMPTS[:3]), list(TEXTS), "cpu")
    assert set(inputs) <= {"input_ids", "attention_mask", "mm_token_type_ids"}


def test_texts_that_spell_special_tokens_stay_texts(backbone: Backbone, family: str) -> None:
    spelled = "a " + " ".join(special.token for special in backbone.family.specials) + " fish"
    video = sample(family)[0]
    inputs = build_inputs(backbone, [spelled, "a fish", spelled], [video, video, TextResponse(spelled)], "cpu")
    special = torch.tensor([backbone.tokenizer.convert_tokens_to_ids(one.token) for one in backbone.family.specials])
    counts = (torch.isin(inputs["input_ids"], special) * inputs["attention_mask"]).sum(1)
    assert counts[0] == counts[1]
    plain = build_inputs(backbone, ["a fish"], [TextResponse("a fish")], "cpu")["input_ids"]
    assert counts[2] == torch.isin(plain, special).sum()
    row = inputs["input_ids"][0][inputs["attention_mask"][0] == 1]
    assert spelled in backbone.tokenizer.decode(row)


def test_added_tokens_that_are_not_called_special_stay_text_too(copied: Path, family: str) -> None:
    known = load_reader(BackboneConfig(path=str(copied))).tokenizer
    path, settings = copied / "tokenizer.json", copied / "tokenizer_config.json"
    fields = json.loads(path.read_text())
    added = [token["content"] for token in fields["added_tokens"]]
    for token in fields["added_tokens"]:
        token["special"] = False
    fields["added_tokens"].append({**fields["added_tokens"][-1], "content": "<row_1>", "id": len(known)})
    path.write_text(json.dumps(fields))
    settings.write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    loaded = load_backbone(BackboneConfig(path=str(copied)))
    assert loaded.tokenizer("<row_1>", add_special_tokens=False, split_special_tokens=True)["input_ids"] == [len(known)]
    video = sample(family)[0]
    ids = loaded.tokenizer.convert_tokens_to_ids([*added, "<row_1>"])
    prompts = ["a fish", f"a {' '.join(added)} <row_1> fish"]
    texts = [TextResponse(prompt) for prompt in prompts]
    inputs = build_inputs(loaded, [*prompts, *prompts], [video, video, *texts], "cpu")
    counts = (torch.isin(inputs["input_ids"], torch.tensor(ids)) * inputs["attention_mask"]).sum(1).tolist()
    assert (counts[0], counts[2]) == (counts[1], counts[3])


def test_token_that_a_tokenizer_cannot_tell_from_its_text_is_refused(copied: Path, family: str) -> None:
    path = copied / "tokenizer.json"
    fields = json.loads(path.read_text())
    for special in FAMILIES[family].specials:  # words like any other
        (token,) = (one for one in fields["added_tokens"] if one["content"] == special.token)
        fields["model"]["vocab"][special.token] = token["id"]
    fields["model"]["ignore_merges"] = True
    fields["pre_tokenizer"], fields["normalizer"] = {"type": "WhitespaceSplit"}, None
    path.write_text(json.dumps(fields))
    edit_json(copied / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    loaded = load_backbone(BackboneConfig(path=str(copied)))
    for special in FAMILIES[family].specials:
        with one_line(SampleError, special.token, "correct it"):
            build_inputs(loaded, [f"a {special.token} fish"], sample(family)[:1], "cpu")


def test_short_clip_is_scored(joint: tuple[ScoreModel, Backbone], family: str) -> None:
    video = sample_video(np.zeros((1, 64, 40, 3), np.uint8), np.zeros(1), SAMPLINGS[family])
    assert np.isfinite(score(*joint, ["a"], [video])["reward"]).all()


def test_bfloat16(folder: Path, family: str) -> None:
    model, _ = build_score_model(backbone=BackboneConfig(path=str(folder), dtype="bfloat16"))
    loaded = load_backbone(BackboneConfig(path=str(folder), dtype="bfloat16"))
    values = score(model, loaded, ["a", "b"], sample(family)[:2])["reward"]
    assert np.isfinite(values).all()


# --- each family's own ------------------------------------------------------------------------------------------------


def test_qwen2_5_vl_sees_true_times(tmp_path: Path) -> None:
    folder = write_tiny_backbone(tmp_path / "backbone", "qwen2_5_vl")
    model, _ = build_score_model(backbone=BackboneConfig(path=str(folder)))
    backbone = load_backbone(BackboneConfig(path=str(folder)))
    frames = CLIPS[0].frames
    slow, fast = Video(frames, np.arange(4.0)), Video(frames, np.arange(4) / 8)
    inputs = build_inputs(backbone, ["a", "a"], [slow, fast], "cpu")
    assert inputs["second_per_grid_ts"].tolist() == [2.0, 0.25]
    positions = backbone.model.get_rope_index(**{k: v for k, v in inputs.items() if not k.startswith("pixel")})[0][0]
    video_id = backbone.tokenizer.convert_tokens_to_ids("<|video_pad|>")
    for row, step in ((0, 8), (1, 1)):  # 4 positions a second
        places = positions[row][inputs["input_ids"][row] == video_id]
        assert (places - places[0]).unique().tolist() == [0, step]
    scores = score(model, backbone, ["a", "a"], [slow, fast])["reward"]
    assert scores[0] != scores[1]


def test_smolvlm_writes_count_duration_and_times(tmp_path: Path) -> None:
    backbone = load_backbone(BackboneConfig(path=str(write_tiny_backbone(tmp_path / "backbone", "smolvlm"))))
    video = Video(np.zeros((2, 32, 32, 3), np.uint8), np.array([0.0, 75.4]))
    text = backbone.tokenizer.decode(build_inputs(backbone, ["a fish"], [video], "cpu")["input_ids"][0])
    frame = "<fake_token_around_image><global-img>" + 4 * "<image>" + "<fake_token_around_image>"
    assert text == (
        "<|im_start|>User: You are provided the following series of two frames from a 0:01:15 [H:MM:SS] video.\n"
        f"\nFrame from 00:00:{frame}\nFrame from 01:15:{frame}\n\nPrompt: a fish<end_of_utterance>\nAssistant:"
    )


def test_number_words() -> None:
    some = {0: "zero", 8: "eight", 19: "nineteen", 20: "twenty", 64: "sixty-four", 100: "one hundred"}
    some |= {101: "one hundred and one", 999: "nine hundred and ninety-nine"}
    assert {number: number_words(number) for number in some} == some
    with pytest.raises(ConfigError, match="999"):
        number_words(1000)
    num2words = pytest.importorskip("num2words").num2words
    assert [number_words(number) for number in range(1000)] == [num2words(number) for number in range(1000)]


@pytest.mark.parametrize("legacy", [False, True])
def test_video_llava_tokenizers_put_spaces_where_the_whole_text_has_them(tmp_path: Path, legacy: bool) -> None:
    folder = write_tiny_backbone(tmp_path / "backbone", "video_llava")
    edit_json(folder / "tokenizer_config.json", legacy=legacy)
    backbone = load_backbone(BackboneConfig(path=str(folder)))
    scheme = backbone.tokenizer.backend_tokenizer.pre_tokenizer.prepend_scheme
    assert scheme == ("always" if legacy else "first")
    video = Video(np.zeros((1, 32, 32, 3), np.uint8), np.zeros(1))
    ids = build_inputs(backbone, ["a fish"], [video], "cpu")["input_ids"][0].tolist()
    whole = "USER: " + 17 * "<video>" + "\nPrompt: a fish ASSISTANT:"
    assert ids == backbone.tokenizer(whole)["input_ids"]


def test_video_llava_weights_as_the_hub_names_them(tmp_path: Path) -> None:
    """Written before transformers 5: towers with a `vision_model` inside, and positions as a buffer."""
    folder = write_tiny_backbone(tmp_path / "backbone", "video_llava")
    expected = load_backbone(BackboneConfig(path=str(folder))).model.state_dict()
    tensors = load_file(folder / "model.safetensors")
    assert "language_model.lm_head.weight" in tensors
    old = {re.sub(r"^(image|video)_tower\.", r"\1_tower.vision_model.", name): one for name, one in tensors.items()}
    old |= {
        f"{tower}_tower.vision_model.embeddings.position_ids": torch.arange(17)[None] for tower in ("image", "video")
    }
    save_file(old, folder / "model.safetensors", metadata={"format": "pt"})
    found = load_backbone(BackboneConfig(path=str(folder))).model.state_dict()
    assert all(torch.equal(found[name], one) for name, one in expected.items())


# --- training and model folders ---------------------------------------------------------------------------------------


def test_only_adapters_in_the_language_model_are_trained(folder: Path, family: str) -> None:
    model, _ = build_score_model(backbone=BackboneConfig(path=str(folder)))
    backbone = load_backbone(BackboneConfig(path=str(folder)))
    model.train()
    scores = model(build_inputs(backbone, list(PROMPTS[:2]), [sample(family)[0], TEXTS[0]], "cpu"))["reward"]
    (scores[0] - scores[1]).backward()
    trained = {name: one for name, one in model.named_parameters() if one.requires_grad}
    adapters = {name for name in trained if "lora_" in name}
    # 2 layers of 7 linear layers with 2 matrices each, and the head.
    assert len(adapters) == 28
    assert all(f".{FAMILIES[family].language_model}.layers." in name for name in adapters)
    assert set(trained) - adapters == {"score_heads.reward.weight", "score_heads.reward.bias"}
    for name, parameter in trained.items():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert name.endswith("bias") or parameter.grad.any(), name


@each_family_with("rank", [0, 2])
def test_saved_models_score_bit_equal(folder: Path, family: str, tmp_path: Path, rank: int) -> None:
    config, lora = BackboneConfig(path=str(folder)), replace(LORA, rank=rank)
    prompts, responses = [*PROMPTS[:4], *PROMPTS[:3]], mixture(family)
    expected = {}
    for seed, heads in enumerate((REWARD, COST)):
        model, record = build_score_model(heads, lora, config, seed)
        record = replace(record, sampling=SAMPLINGS[family])
        save_model(model, record, tmp_path / min(heads), whole_weights(model))
        expected |= score(model, load_backbone(config), prompts, responses)
    loaded, backbone, joined = load_models([tmp_path / "reward", tmp_path / "cost"])
    assert joined.sampling == SAMPLINGS[family]
    # Two adapters, each alone and bit-equal so, on one run of the frozen vision tower.
    calls: list[int] = []
    tower = backbone.model.get_submodule(backbone.family.vision_tower)
    tower.register_forward_hook(lambda *_: calls.append(1))
    found = score(loaded, backbone, prompts, responses)
    assert len(calls) == 1
    assert set(found) == {"reward", "cost"}
    for head, values in found.items():
        assert np.array_equal(values, expected[head])


def test_model_folder_is_of_its_familys_template(folder: Path, family: str, tmp_path: Path) -> None:
    model, record = build_score_model(backbone=BackboneConfig(path=str(folder)))
    save_model(model, record, tmp_path, whole_weights(model))
    other = next(one for name, one in FAMILIES.items() if name != family)
    for template in (
        {"name": other.template.name, "hash": FAMILIES[family].template_hash()},
        {"name": FAMILIES[family].template.name, "hash": other.template_hash()},
    ):
        edit_json(tmp_path / "model.json", template=template)
        with one_line(CheckpointError, "trained with the template", template["name"]):
            load_models([tmp_path])


# --- errors -----------------------------------------------------------------------------------------------------------


def remove(*names: str) -> Callable[[Path], object]:
    return lambda folder: [(folder / name).unlink(missing_ok=True) for name in names]


PROCESSORS = ("processor_config.json", "video_preprocessor_config.json", "preprocessor_config.json")


def test_damage_is_said_before_weights_are_read(copied: Path, monkeypatch: pytest.MonkeyPatch, family: str) -> None:
    monkeypatch.setattr(backbones.AutoModel, "from_pretrained", lambda *a, **k: pytest.fail("weights were read"))
    tokenizer = Path(shutil.copy(copied / "tokenizer.json", copied.parent))
    token = FAMILIES[family].video_token.token
    for damage, part in (
        (lambda f: (f / "tokenizer.json").write_text(tokenizer.read_text().replace(token, "<other>")), token),
        (remove("tokenizer.json", "tokenizer_config.json"), "tokenizer"),
        (lambda f: edit_json(f / PROCESSORS[-2 if family == "qwen3_vl" else -1], image_std=[0.5]), "damaged"),
        (remove(*PROCESSORS), "processor files"),
        (lambda f: edit_json(f / "config.json", model_type="qwen2_vl"), "supported: qwen3_vl, qwen2_5_vl"),
    ):
        damage(copied)
        with one_line(CheckpointError, str(copied), part):
            load_backbone(BackboneConfig(path=str(copied)))


@pytest.mark.parametrize(
    ("family_name", "changes"),
    [
        ("smolvlm", {"max_image_size": {"longest_edge": 64}}),
        ("video_llava", {"crop_size": {"height": 64, "width": 32}}),
    ],
)
def test_processor_of_another_image_size(tmp_path: Path, family_name: str, changes: dict) -> None:
    folder = write_tiny_backbone(tmp_path / "backbone", family_name)
    edit_json(folder / "preprocessor_config.json", **changes)
    with one_line(CheckpointError, "preprocessor_config.json", *changes, "64", "image_size of 32"):
        load_family(BackboneConfig(path=str(folder)))


def test_frames_and_texts_that_do_not_fit(backbone: Backbone, family: str) -> None:
    with one_line(ConfigError, "tokens", "1024"):
        build_inputs(backbone, ["a", "many words " * 1000], sample(family)[:2], "cpu")
    multiple = backbone.family.size_multiple
    part = "multiples of 8" if SAMPLINGS[family].fit == "aspect" else f"sampling.fit to {SAMPLINGS[family].fit}"
    with one_line(ConfigError, part, f"size_multiple to {'it' if multiple == 8 else multiple}"):
        build_inputs(backbone, ["a"], [Video(np.zeros((2, 20, 32, 3), np.uint8), np.arange(2.0))], "cpu")


def test_sampling_is_checked_before_weights_are_read(
    folder: Path, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backbones.AutoModel, "from_pretrained", lambda *a, **k: pytest.fail("weights were read"))
    config, sampling = BackboneConfig(path=str(folder)), SAMPLINGS[family]
    check_sampling(config, sampling)
    assert load_family(config).size_multiple == sampling.size_multiple
    with one_line(ConfigError, "sampling.size_multiple", str(folder), f"set it to {sampling.size_multiple}"):
        check_sampling(config, Sampling(4, 28 * 28, 28 * 28, 28, fit=sampling.fit))
    area = sampling.size_multiple**2
    wrong = Sampling(4, area, area, sampling.size_multiple, fit="crop" if sampling.fit != "crop" else "stretch")
    with one_line(ConfigError, "sampling.fit", f"set it to {sampling.fit}"):
        check_sampling(config, wrong)
    with one_line(ConfigError, "600 frames", "takes 1024", "lower sampling.num_frames"):
        check_sampling(config, replace(sampling, num_frames=600))


def test_code_beside_the_weights_runs_only_when_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    folder = write_tiny_backbone(tmp_path / "backbone", "qwen3_vl")
    exploded = tmp_path / "exploded"
    (folder / "code.py").write_text(f"open({str(exploded)!r}, 'w')\nraise RuntimeError('remote code ran')\n")
    edit_json(folder / "config.json", auto_map={"AutoConfig": "code.Config", "AutoModel": "code.Model"})
    config = BackboneConfig(path=str(folder))
    model, record = build_score_model(backbone=config)
    record = replace(record, backbone=replace(config, trust_remote_code=True))
    save_model(model, record, tmp_path / "model", whole_weights(model))
    # What a model folder says of itself does not count.
    text = (tmp_path / "model" / "model.json").read_text()
    assert "trust_remote_code" not in text
    (tmp_path / "model" / "model.json").write_text(text.replace('"dtype":', '"trust_remote_code": true, "dtype":'))
    load_models([tmp_path / "model"])
    assert not exploded.exists()
    with one_line(CheckpointError, "remote code ran"):
        load_backbone(replace(config, trust_remote_code=True))
    assert exploded.exists()
    with one_line(CheckpointError, "remote code ran"):
        load_models([tmp_path / "model"], trust_remote_code=True)


# --- the official processors ------------------------------------------------------------------------------------------


def test_inputs_equal_the_official_processors() -> None:
    """In a process of its own: beside CPU torch, torchvision must be prepared before transformers is imported."""
    home = os.environ.get("TORCHVISION_FOLDER", "")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([home, *filter(None, sys.path)])}
    script = Path(__file__).with_name("official_processor.py")
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, check=False)
    if done.returncode == 77:
        pytest.skip(
            f"{done.stdout.strip()}; pip install --no-deps --target DIR torchvision num2words docopt, then set "
            "TORCHVISION_FOLDER=DIR"
        )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    print(done.stdout.strip())
