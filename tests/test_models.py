"""Backbones, inputs, pooling, the score model and its folder on disk."""

import json
import math
import os
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import launch
from safetensors.torch import load_file, save_file
from small_models import (
    COST,
    JOINT,
    LORA,
    PROMPTS,
    REWARD,
    SAMPLING,
    build_score_model,
    noise_video,
    one_line,
    score,
    whole_weights,
    write_model,
    write_reward_and_cost,
)
from tiny_backbones import edit_json, write_tiny_backbone
from transformers import modeling_utils

from safe_rlhf_video.errors import CheckpointError, ConfigError, SampleError
from safe_rlhf_video.heads import LABEL_HEADS
from safe_rlhf_video.models import backbones
from safe_rlhf_video.models import inputs as inputs_module
from safe_rlhf_video.models.backbones import (
    EMBEDDED_FOLDER,
    Backbone,
    load_backbone,
    load_family,
)
from safe_rlhf_video.models.config import BackboneConfig, LoraConfig, Pooling
from safe_rlhf_video.models.families import FAMILIES
from safe_rlhf_video.models.families.base import normalise
from safe_rlhf_video.models.families.patches import PatchSize
from safe_rlhf_video.models.families.qwen3_vl import Qwen3VL
from safe_rlhf_video.models.folder import load_models, save_model
from safe_rlhf_video.models.inputs import build_inputs
from safe_rlhf_video.models.lru_bytes import LruBytes
from safe_rlhf_video.models.pooling import attend, last_attended
from safe_rlhf_video.models.record import TrainingFacts, read_record
from safe_rlhf_video.models.score_model import ScoreModel
from safe_rlhf_video.responses import Response, TextResponse
from safe_rlhf_video.video.sampling import Video, sample_video

VIDEOS = (
    noise_video(4, 16, 48, 0),
    noise_video(1, 32, 32, 1),
    noise_video(3, 48, 24, 2),
    noise_video(4, 48, 48, 3),
    noise_video(2, 16, 16, 4),
)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return load_backbone(BackboneConfig())


@pytest.fixture(scope="module")
def joint() -> tuple[ScoreModel, Backbone]:
    """A model with both heads, and its backbone (which the adapters have changed)."""
    loaded = load_backbone(BackboneConfig())
    model = ScoreModel(loaded, JOINT, LORA).eval()
    reference, _ = build_score_model(JOINT)
    model.load_state_dict(reference.state_dict())
    return model, loaded


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A reward and a cost folder."""
    base = tmp_path_factory.mktemp("models")
    return write_reward_and_cost(base)


# --- inputs -----------------------------------------------------------------------------------------------------------


def test_batch_size_order_and_padding_leave_scores_alone(joint: tuple[ScoreModel, Backbone]) -> None:
    model, backbone = joint
    alone = [score(model, backbone, [text], [video]) for text, video in zip(PROMPTS, VIDEOS, strict=True)]
    together = score(model, backbone, list(PROMPTS), list(VIDEOS))
    turned = score(model, backbone, list(PROMPTS[::-1]), list(VIDEOS[::-1]))
    # One long neighbour pads a short one far.
    padded = score(model, backbone, [PROMPTS[4], PROMPTS[2] * 3], [VIDEOS[4], VIDEOS[3]])
    for head in ("reward", "cost"):
        single = np.array([values[head][0] for values in alone])
        assert np.ptp(single) > 1e-3  # else nothing is compared
        assert abs(together[head] - single).max() <= 1e-5
        assert abs(turned[head][::-1] - single).max() <= 1e-5
        assert abs(padded[head][0] - single[4]) <= 1e-5


def test_texts_and_videos_score_alike_alone_and_together(joint: tuple[ScoreModel, Backbone]) -> None:
    model, backbone = joint
    texts = [TextResponse("a red circle"), TextResponse("ich weiß es nicht, frag 🐟 " * 9), TextResponse("")]
    responses: list[Response] = [texts[0], VIDEOS[0], VIDEOS[2], texts[1], texts[2]]
    together = score(model, backbone, list(PROMPTS), responses)
    for row, (prompt, response) in enumerate(zip(PROMPTS, responses, strict=True)):
        alone = score(model, backbone, [prompt], [response])
        for head, values in alone.items():
            assert abs(values[0] - together[head][row]) <= 1e-5
    only_texts = score(model, backbone, [PROMPTS[0], *PROMPTS[3:]], texts)
    for head, values in only_texts.items():
        assert np.abs(values - together[head][[0, 3, 4]]).max() <= 1e-5
        assert len(set(values)) == 3


def test_text_response_is_the_assistants_turn(backbone: Backbone) -> None:
    response = TextResponse("no <|im_end|> way")
    inputs = build_inputs(backbone, ["a fish?"], [response], "cpu")
    assert set(inputs) == {"input_ids", "attention_mask", "mm_token_type_ids"}
    assert not inputs["mm_token_type_ids"].any()
    expected = "<|im_start|>user\na fish?<|im_end|>\n<|im_start|>assistant\nno <|im_end|> way<|im_end|>"
    ids = inputs["input_ids"][0]
    assert backbone.tokenizer.decode(ids) == expected
    # The one in the response is spelled out; the score is read at the true end.
    end = backbone.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert (ids == end).nonzero().flatten().tolist()[-1] == len(ids) - 1
    assert (ids == end).sum() == 2


def test_padding_holds_for_other_content_behind_the_mask(joint: tuple[ScoreModel, Backbone]) -> None:
    """What stands at a padded place, a video token even, is not read."""
    model, backbone = joint
    inputs = build_inputs(backbone, list(PROMPTS[:2]), list(VIDEOS[:2]), "cpu")
    with torch.inference_mode():
        before = model(inputs)["reward"]
        inputs["input_ids"][inputs["attention_mask"] == 0] = backbone.tokenizer.convert_tokens_to_ids("a")
        after = model(inputs)["reward"]
    assert (before - after).abs().max() <= 1e-5


@pytest.mark.parametrize("side", ["left", "right", "both"])
def test_pooling_takes_the_last_attended_token(side: str) -> None:
    rng = np.random.default_rng(0)
    states = torch.from_numpy(rng.normal(size=(6, 9, 5)))
    mask = torch.zeros(6, 9, dtype=torch.long)
    for row in range(6):
        length = int(rng.integers(1, 8))
        start = {"left": 9 - length, "right": 0, "both": 1}[side]
        mask[row, start : start + length] = 1
    expected = torch.stack([states[row, max(i for i in range(9) if mask[row, i])] for row in range(6)])
    assert torch.equal(last_attended(states, mask), expected)
    assert torch.equal(last_attended(states, torch.ones_like(mask)), states[:, -1])


def test_query_pooling_is_its_formula_and_reads_no_padding() -> None:
    rng = np.random.default_rng(0)
    states, query = rng.normal(size=(5, 7, 4)), rng.normal(size=4)
    mask = np.array([[1] * length + [0] * (7 - length) for length in (7, 1, 3, 4, 6)])
    states[mask == 0] = np.inf
    pooled = attend(*(torch.from_numpy(a) for a in (states.astype(np.float32), mask)), torch.from_numpy(query).float())
    for row, length in enumerate(mask.sum(1)):
        kept = states[row, :length]
        weights = np.exp(kept @ query / np.sqrt(4))
        weights[-1] *= max(length - 1, 1)  # half of the weight, where the query says nothing
        np.testing.assert_allclose(pooled[row].numpy(), weights @ kept / weights.sum(), rtol=1e-5, atol=1e-6)
    fresh = attend(torch.from_numpy(states).float(), torch.from_numpy(mask), torch.zeros(4))
    np.testing.assert_allclose(fresh[2].numpy(), (states[2, :2].mean(0) + states[2, 2]) / 2, rtol=1e-5)


def test_query_pooling_leaves_scores_alone_in_any_batch() -> None:
    model, _ = build_score_model(JOINT, pooling="query")
    backbone = load_backbone(BackboneConfig())
    together = score(model, backbone, list(PROMPTS), list(VIDEOS))
    for row, (text, video) in enumerate(zip(PROMPTS, VIDEOS, strict=True)):
        for head, values in score(model, backbone, [text], [video]).items():
            assert abs(values[0] - together[head][row]) <= 1e-5


def test_inputs_count_what_they_hold(backbone: Backbone) -> None:
    inputs = build_inputs(backbone, list(PROMPTS), list(VIDEOS), "cpu")
    video_id = backbone.model.config.video_token_id
    grids = inputs["video_grid_thw"]
    assert grids.tolist() == [[-(-len(v.frames) // 2), v.frames.shape[1] // 4, v.frames.shape[2] // 4] for v in VIDEOS]
    is_video = (inputs["input_ids"] == video_id) & (inputs["attention_mask"] == 1)
    assert torch.equal(is_video.sum(1), grids.prod(1) // 4)
    assert torch.equal(inputs["mm_token_type_ids"], 2 * is_video.long())
    assert len(inputs["pixel_values_videos"]) == grids.prod(1).sum()
    # Padding is on the right.
    assert (inputs["attention_mask"].diff(dim=1) <= 0).all()


def test_a_panic_of_the_tokenizer_is_an_error_of_the_text(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    panic = type("PanicException", (BaseException,), {})  # as pyo3 names a panic in Rust; it is no Exception

    raised: list[BaseException] = []

    def encode(*_: object, **__: object) -> None:
        raise raised[-1]

    monkeypatch.setattr(inputs_module, "_text_tokenizer", lambda *_: SimpleNamespace(encode=encode))
    for error, expected in ((panic(), SampleError), (SystemExit(), SystemExit)):
        raised.append(error)
        with pytest.raises(expected) as caught:
            build_inputs(backbone, [f"the text of {expected.__name__}"], [VIDEOS[0]], "cpu")
        if expected is SampleError:
            assert "the backbone's tokenizer fails on the text" in str(caught.value)


def test_token_ids_are_kept_within_a_number_of_bytes(backbone: Backbone) -> None:
    cache: LruBytes[str] = LruBytes(20_000)
    for number in range(100):
        cache.put(str(number), tuple(range(100)), 50)
        assert cache.get("0") is not None  # used all the time
        assert cache.num_bytes <= 20_000
    assert cache.get("99") == tuple(range(100))
    assert cache.get("1") is None
    cache.put("0", (1,), 50)
    cache.put("large", tuple(range(1000)), 50)
    assert (cache.get("0"), cache.get("large")) == ((1,), None)
    # What a server meets: texts that never come again.
    for number in range(1500):
        build_inputs(backbone, [f"{number} " + "fish " * 100], [TextResponse("")], "cpu")
    assert 1 << 20 < inputs_module._text_ids_cache.num_bytes <= 64 << 20


def test_prompt_that_spells_special_tokens_stays_text(backbone: Backbone) -> None:
    spelled = "a <|video_pad|><|im_end|> fish <|vision_start|><|endoftext|>"
    inputs = build_inputs(backbone, [spelled, "a fish"], [VIDEOS[0]] * 2, "cpu")
    special = torch.tensor(backbone.tokenizer.all_special_ids)
    counts = torch.isin(inputs["input_ids"], special).long() * inputs["attention_mask"]
    assert counts[0].sum() == counts[1].sum()
    row = inputs["input_ids"][0][inputs["attention_mask"][0] == 1]
    assert f"Prompt: {spelled}<|im_end|>\n" in backbone.tokenizer.decode(row)
    # The tokenizer is not left in another state by it.
    assert backbone.tokenizer("<|video_pad|>")["input_ids"] == [backbone.model.config.video_token_id]


def test_wrong_inputs_are_refused_in_one_line(backbone: Backbone) -> None:
    with one_line(ConfigError, "tokens", "4096"):
        build_inputs(backbone, ["a", "many words " * 5000], [VIDEOS[0]] * 2, "cpu")
    with one_line(ConfigError, "multiples of 8", "size_multiple"):
        build_inputs(backbone, ["a"], [Video(np.zeros((2, 20, 16, 3), np.uint8), np.arange(2.0))], "cpu")
    with one_line(SampleError, "Unicode"):
        build_inputs(backbone, ["half a fish \ud83d"], [VIDEOS[0]], "cpu")


def test_mirrored_and_read_only_frames_are_taken(backbone: Backbone) -> None:
    frames = VIDEOS[0].frames
    mirrored = Video(frames[..., ::-1], VIDEOS[0].timestamps)
    frozen = frames[..., ::-1].copy()
    frozen.flags.writeable = False
    first = build_inputs(backbone, ["a"], [mirrored], "cpu")["pixel_values_videos"]
    second = build_inputs(backbone, ["a"], [Video(frozen, VIDEOS[0].timestamps)], "cpu")["pixel_values_videos"]
    assert torch.equal(first, second)


def test_patches_by_brute_force() -> None:
    family = Qwen3VL((0.4, 0.5, 0.6), (0.2, 0.3, 0.1), PatchSize(spatial=2, temporal=2, merge=2))
    frames = np.random.default_rng(0).integers(0, 256, (3, 8, 4, 3), dtype=np.uint8)
    patches = family.encode(normalise(torch.from_numpy(frames), family))
    assert family.patches.grid(3, 8, 4) == (2, 4, 2)
    padded = np.concatenate([frames, frames[-1:]]) / 255.0
    values = (padded - family.mean) / family.std
    rows = []
    for t in range(2):
        for block in range(2):  # blocks of merge x merge patches, one block wide
            for row in range(2):
                for column in range(2):
                    y, x = 4 * block + 2 * row, 2 * column
                    patch = values[2 * t : 2 * t + 2, y : y + 2, x : x + 2]
                    rows.append(patch.transpose(3, 0, 1, 2).reshape(-1))
    np.testing.assert_allclose(patches.numpy(), np.array(rows), atol=1e-5)


def test_times_of_temporal_patches() -> None:
    times = [0.0, 0.5, 1.5, 2.0, 4.0]
    for temporal, expected in ((2, [0.25, 1.75, 4.0]), (4, [1.0, 4.0]), (1, times)):
        family = Qwen3VL((0.0,) * 3, (1.0,) * 3, PatchSize(spatial=2, temporal=temporal, merge=2))
        assert family.step_seconds(times) == expected
        assert family.count_steps(len(times)) == len(expected)


# --- the backbone -----------------------------------------------------------------------------------------------------


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    return Path(shutil.copytree(EMBEDDED_FOLDER, tmp_path / "backbone"))


def test_embedded_backbone_is_loaded_like_any_folder(copied: Path, folders: tuple[Path, Path]) -> None:
    embedded, folder = load_backbone(BackboneConfig()), load_backbone(BackboneConfig(path=str(copied)))
    assert embedded.fingerprint == folder.fingerprint
    assert embedded.family == folder.family
    assert embedded.family.size_multiple == load_family(BackboneConfig()).size_multiple == 8
    with torch.inference_mode():
        first, second = (
            loaded.model(**build_inputs(loaded, list(PROMPTS), list(VIDEOS), "cpu")).last_hidden_state
            for loaded in (embedded, folder)
        )
    assert torch.equal(first, second)
    assert not any(parameter.requires_grad for parameter in embedded.model.parameters())
    assert not embedded.model.training


def test_random_initialisation_is_reproducible_and_draws_nothing_global() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = load_backbone(BackboneConfig(initialization="random", random_seed=1))
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    again = load_backbone(BackboneConfig(path=str(EMBEDDED_FOLDER), initialization="random", random_seed=1))
    other = load_backbone(BackboneConfig(initialization="random", random_seed=2))
    low = load_backbone(BackboneConfig(initialization="random", random_seed=1, dtype="bfloat16"))
    embedded = load_backbone(BackboneConfig())
    assert first.fingerprint == again.fingerprint == low.fingerprint
    assert len({first.fingerprint, other.fingerprint, embedded.fingerprint}) == 3
    for (name, mine), theirs in zip(first.model.state_dict().items(), again.model.state_dict().values(), strict=True):
        assert torch.equal(mine, theirs), name
    # A GPU run in bfloat16 and a CPU run in float32 stand on the same control.
    for mine, theirs in zip(first.model.parameters(), low.model.parameters(), strict=True):
        assert torch.equal(mine.to(torch.bfloat16), theirs)
    pairs = zip(first.model.parameters(), embedded.model.parameters(), strict=True)
    assert [a.shape for a, _ in pairs] == [p.shape for p in embedded.model.parameters()]


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def replace_by_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps({"reward.weight": [0.0]}))


INDEX = "model.safetensors.index.json"


def shard(folder: Path, index: str) -> None:
    """As if the weights were cut into files, of which one is there."""
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    (folder / INDEX).write_text(index)


def edit_part(folder: Path, part: str, **changes: object) -> None:
    path = folder / "config.json"
    edit_json(path, **{part: json.loads(path.read_text())[part] | changes})


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (
            lambda f: edit_json(f / "config.json", model_type="llama"),
            ("'llama'", "qwen3_vl, qwen2_5_vl, smolvlm, video_llava"),
        ),
        (
            lambda f: edit_json(f / "config.json", model_type="no_such_family"),
            ("no_such", "qwen3_vl, qwen2_5_vl"),
        ),
        (lambda f: (f / "config.json").unlink(), ("config.json",)),
        (lambda f: (f / "config.json").write_text("{"), ("JSON",)),
        (lambda f: [(f / n).unlink() for n in ("tokenizer.json", "tokenizer_config.json")], ("tokenizer files",)),
        (lambda f: (f / "tokenizer.json").unlink(), ("tokenizer",)),
        (lambda f: (f / "tokenizer.json").write_text('{"added_tokens": [], "model": {}}'), ("cannot load",)),
        (lambda f: edit_json(f / "config.json", video_token_id=5), ("<|video_pad|>", "6", "5")),
        (
            lambda f: [(f / n).unlink() for n in ("preprocessor_config.json", "video_preprocessor_config.json")],
            ("video_preprocessor_config.json",),
        ),
        (lambda f: (f / "video_preprocessor_config.json").write_text("{"), ("damaged",)),
        (lambda f: (f / "video_preprocessor_config.json").write_text("{}"), ("'image_mean'", "missing")),
        (lambda f: edit_json(f / "video_preprocessor_config.json", image_std=[0.5]), ("damaged",)),
        (lambda f: (f / "model.safetensors").unlink(), ("model.safetensors",)),
        (lambda f: cut_short(f / "model.safetensors"), ("cannot load",)),
        (lambda f: replace_by_pickle(f / "model.safetensors"), ("cannot load",)),
        (
            lambda f: (torch.save({"a": torch.ones(2)}, f / "pytorch_model.bin"), (f / "model.safetensors").unlink()),
            ("model.safetensors",),
        ),
        (lambda f: edit_json(f / "config.json", transformers_weights="a.safetensors"), ("'a.safetensors'", "rename")),
        (lambda f: (f / "adapter_config.json").write_text("{}"), ("adapter_config.json", "merge")),
        (lambda f: edit_part(f, "text_config", num_hidden_layers=10**5), ("text_config.num_hidden_layers is 100000",)),
        (lambda f: edit_part(f, "vision_config", depth=10**5), ("vision_config.depth is 100000", "at most 256")),
        (lambda f: edit_part(f, "text_config", vocab_size=10**9), ("numbers, the weights have 1632672",)),
        (lambda f: edit_json(f / "config.json", num_labels=10**9), ("num_labels is 1000000000",)),
        (
            lambda f: edit_json(f / "config.json", id2label=dict.fromkeys(map(str, range(10**5)), "a")),
            ("id2label has 100000",),
        ),
        (lambda f: edit_json(f / "config.json", a=json.loads("{" + '"a":{' * 30 + "}" * 31)), ("nested too deeply",)),
        (
            lambda f: edit_json(f / "config.json", quantization_config={"quant_method": "mxfp4"}),
            ("quantization_config",),
        ),
        (lambda f: edit_part(f, "text_config", quantization_config={"a": 1}), ("text_config.quantization_config",)),
        (lambda f: shard(f, "{"), (INDEX, "damaged")),
        (lambda f: shard(f, "{}"), (INDEX, "damaged", "'weight_map' is missing")),
        (lambda f: shard(f, '{"weight_map": []}'), (INDEX, "damaged")),
        (lambda f: shard(f, '{"weight_map": {}}'), (INDEX, "damaged", "empty")),
        (lambda f: shard(f, '{"weight_map": {"a": 3}}'), (INDEX, "damaged", "3 is no file beside it")),
        (lambda f: shard(f, '{"weight_map": {"a": ["model-1.safetensors"]}}'), (INDEX, "damaged")),
        (lambda f: shard(f, '{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}'), ("model-2",)),
        (lambda f: shard(f, '{"weight_map": {"a": "../model-1.safetensors"}}'), (INDEX, "'../model-1.safetensors'")),
        (lambda f: shard(f, '{"weight_map": {"a": "/etc/hostname"}}'), (INDEX, "'/etc/hostname' is no file beside it")),
        pytest.param(
            lambda f: ((f / "model.safetensors").unlink(), (f / "model.safetensors").symlink_to("/proc/self/mem")),
            ("model.safetensors", "cannot be read"),
            marks=pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="needs a file that cannot be read"),
        ),
    ],
)
def test_damaged_backbone_folder(
    copied: Path, damage: Callable[[Path], object], parts: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    damage(copied)
    with one_line(CheckpointError, str(copied), *parts):
        load_backbone(BackboneConfig(path=str(copied)))


def test_a_folder_cannot_name_kernels_of_the_hub(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(*names: object, **_: object) -> None:
        raise AssertionError(f"{names}: fetched from the hub")

    monkeypatch.setattr(modeling_utils, "lazy_import_flash_attention", fetch)
    names = dict.fromkeys(("_attn_implementation", "attn_implementation"), "owner/repo")
    names |= {"_experts_implementation": "owner/experts"}
    for part in ("text_config", "vision_config"):
        edit_part(copied, part, **names)
    edit_json(copied / "config.json", **names)
    loaded = load_backbone(BackboneConfig(path=str(copied)))
    configs = [loaded.model.config, loaded.model.config.text_config, loaded.model.config.vision_config]
    assert [one._attn_implementation for one in configs] == [loaded.attention] * 3 == ["sdpa"] * 3
    assert {name: weight.sum() for name, weight in loaded.model.state_dict().items()} == {
        name: weight.sum() for name, weight in load_backbone(BackboneConfig()).model.state_dict().items()
    }


def test_weights_that_do_not_fit_config_json(copied: Path) -> None:
    text = json.loads((copied / "config.json").read_text())["text_config"]
    for changes, parts in (
        ({"num_hidden_layers": text["num_hidden_layers"] + 1}, ("missing",)),
        ({"num_hidden_layers": text["num_hidden_layers"] - 1}, ("no place",)),
        ({"intermediate_size": text["intermediate_size"] * 2}, ("shape",)),
    ):
        edit_json(copied / "config.json", text_config={**text, **changes})
        with one_line(CheckpointError, str(copied), *parts):
            load_backbone(BackboneConfig(path=str(copied)))


def test_a_models_headers_are_read_before_the_backbones_files(
    folders: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backbones.hashlib, "file_digest", lambda *a: pytest.fail("weights were read"))
    folder = Path(shutil.copytree(folders[0], tmp_path / "reward"))
    change_tensors(folder / "heads.safetensors", lambda tensors: tensors.pop("reward.bias"))
    with one_line(CheckpointError, "heads.safetensors: lacks the tensor reward.bias"):
        load_models([folder])
    # A backbone of another size is said too.
    folder = write_tiny_backbone(tmp_path / "smaller", "qwen3_vl")
    with one_line(CheckpointError, str(folders[0]), "needs", "give the backbone that it was trained on"):
        load_models([folders[0]], backbone_path=str(folder))


def test_unsupported_family_is_said_before_weights_are_read(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edit_json(copied / "config.json", model_type="qwen2_vl")
    monkeypatch.setattr(backbones.AutoModel, "from_pretrained", lambda *a, **k: pytest.fail("weights were read"))
    with one_line(CheckpointError, "'qwen2_vl'", "supported: qwen3_vl, qwen2_5_vl"):
        load_backbone(BackboneConfig(path=str(copied)))


def test_attention_is_the_one_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    states = {}
    for name, expected in (("auto", "sdpa"), ("sdpa", "sdpa"), ("eager", "eager")):
        for initialization in ("pretrained", "random"):
            loaded = load_backbone(BackboneConfig(attention=name, initialization=initialization))  # type: ignore[arg-type]
            assert loaded.attention == expected
            assert not loaded.liger  # on a CPU never
            for module in (loaded.model.visual, loaded.model.language_model):
                assert module.config._attn_implementation == expected
            with torch.inference_mode():
                inputs = build_inputs(loaded, list(PROMPTS), list(VIDEOS), "cpu")
                states[name, initialization] = loaded.model(**inputs).last_hidden_state[inputs["attention_mask"] == 1]
    assert torch.equal(states["auto", "pretrained"], states["sdpa", "pretrained"])
    torch.testing.assert_close(states["eager", "pretrained"], states["sdpa", "pretrained"], atol=1e-3, rtol=1e-4)
    monkeypatch.setattr(backbones.AutoModel, "from_pretrained", lambda *a, **k: pytest.fail("weights were read"))
    for dtype in ("float32", "bfloat16"):
        with one_line(ConfigError, "model.backbone.attention", "flash_attention_2", f"cpu, {dtype}", "auto or sdpa"):
            load_backbone(BackboneConfig(attention="flash_attention_2", dtype=dtype))  # type: ignore[arg-type]


def test_processor_saved_by_transformers_5(copied: Path) -> None:
    """It has one processor_config.json for all processors, which goes before older files."""
    config = BackboneConfig(path=str(copied))
    expected = load_family(config)
    video = json.loads((copied / "video_preprocessor_config.json").read_text())
    (copied / "processor_config.json").write_text(json.dumps({"video_processor": video}))
    edit_json(copied / "video_preprocessor_config.json", image_mean=[0.0, 0.0, 0.0])
    assert load_family(config) == expected
    (copied / "processor_config.json").write_text(json.dumps({"processor_class": "Qwen3VLProcessor"}))
    assert load_family(config).mean == (0.0, 0.0, 0.0)


def test_nothing_is_asked_of_the_network(folders: tuple[Path, Path], tmp_path: Path) -> None:
    """In a process where every connection fails: folders load, and an unknown hub id is one line."""
    code = f"""
import socket
def refuse(*arguments, **options):
    raise SystemExit(f"a connection was tried: {{arguments}}")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
from safe_rlhf_video.errors import CheckpointError
from safe_rlhf_video.models.backbones import load_backbone
from safe_rlhf_video.models.folder import load_models
from safe_rlhf_video.models.config import BackboneConfig
load_models({[str(folder) for folder in folders]!r})
for name in ("nobody/there-is-no-such-backbone", "/there/is/no/such/folder", ""):
    try:
        load_backbone(BackboneConfig(path=name))
    except CheckpointError as error:
        assert "\\n" not in str(error) and name in str(error), str(error)
    else:
        raise SystemExit("loaded")
print("done")
"""
    script = tmp_path / "loads.py"
    script.write_text(code)
    assert launch(script).stdout.strip() == "done"


# --- model folders ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rank", "pooling", "heads_of_adapter"),
    [
        (0, "last_token", REWARD),
        (2, "last_token", JOINT),
        (2, "query", REWARD),
        pytest.param(0, "last_token", JOINT, marks=pytest.mark.slow),
        pytest.param(2, "last_token", REWARD, marks=pytest.mark.slow),
        pytest.param(2, "query", JOINT, marks=pytest.mark.slow),
    ],
)
def test_saved_model_scores_bit_equal(tmp_path: Path, rank: int, pooling: Pooling, heads_of_adapter: dict) -> None:
    lora = replace(LORA, rank=rank)
    model, record = build_score_model(heads_of_adapter, lora, pooling=pooling)
    _, backbone_of_model = model, load_backbone(BackboneConfig())
    save_model(model, record, tmp_path / "model", whole_weights(model))
    loaded, backbone, joined = load_models([tmp_path / "model"])
    assert joined == record == read_record(tmp_path / "model")
    expected = score(model, backbone_of_model, list(PROMPTS), list(VIDEOS))
    found = score(loaded, backbone, list(PROMPTS), list(VIDEOS))
    assert set(found) == set(expected) == {head for heads in heads_of_adapter.values() for head in heads}
    for head, values in expected.items():
        assert np.array_equal(found[head], values)
    if rank:
        _, bare = build_score_model(heads_of_adapter, replace(LORA, rank=0)), load_backbone(BackboneConfig())
        without = ScoreModel(bare, heads_of_adapter, replace(LORA, rank=0), pooling).eval()
        without.score_heads.load_state_dict(model.score_heads.state_dict())
        for head, values in score(without, bare, list(PROMPTS), list(VIDEOS)).items():
            assert abs(values - expected[head]).max() > 1e-4  # the adapters count
    # Saving what was loaded gives the same files.
    save_model(loaded, joined, tmp_path / "again", whole_weights(loaded))
    for path in (tmp_path / "model").rglob("*"):
        if path.is_file():
            assert (tmp_path / "again" / path.relative_to(tmp_path / "model")).read_bytes() == path.read_bytes()


def test_two_folders_on_one_backbone_score_as_each_alone(folders: tuple[Path, Path]) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    both, backbone, record = load_models(folders)
    assert torch.equal(torch.get_rng_state(), before)
    assert dict(record.heads_of_adapter) == {"reward": ("reward",), "cost": ("cost",)}
    together = score(both, backbone, list(PROMPTS), list(VIDEOS))
    again = score(both, backbone, list(PROMPTS), list(VIDEOS))
    for folder, head in zip(folders, ("reward", "cost"), strict=True):
        alone, alone_backbone, _ = load_models([folder])
        expected = score(alone, alone_backbone, list(PROMPTS), list(VIDEOS))[head]
        assert np.array_equal(together[head], expected)
        assert np.array_equal(again[head], expected)
    turned, turned_backbone, _ = load_models(folders[::-1])
    assert np.array_equal(score(turned, turned_backbone, list(PROMPTS), list(VIDEOS))["cost"], together["cost"])


def test_model_json_is_written_as_people_write(tmp_path: Path) -> None:
    model, record = build_score_model(REWARD)
    # The last is what Python makes of a file name that is no UTF-8.
    facts = TrainingFacts(step=3, leave_out_generators=("дані/魚",), class_weights={"harm_any": (0.5, 2.0)})
    record = replace(record, training=facts, backbone=BackboneConfig(path="caf\udce9"))
    save_model(model, record, tmp_path / "model", whole_weights(model))
    assert "дані/魚" in (tmp_path / "model" / "model.json").read_text(encoding="utf-8")
    assert read_record(tmp_path / "model") == record


def test_a_folder_of_format_version_3_is_read(tmp_path: Path) -> None:
    model, record = build_score_model({"moderation": ("harm_any", "severity")})
    weights = {"harm_any": (1.0, 2.5), "severity": (0.5, 1.0, 1.5, 3.0)}
    record = replace(record, training=TrainingFacts(step=7, data="d", seed=3, class_weights=weights))
    save_model(model, record, tmp_path / "model", whole_weights(model))
    fields = json.loads((tmp_path / "model" / "model.json").read_text())
    del fields["training"]["class_weights"]
    old = {"harm_log_odds": {"harm_any": math.log(2.5)}, "severity_weights": [0.5, 1.0, 1.5, 3.0]}
    edit_json(tmp_path / "model" / "model.json", format_version=3, training=fields["training"] | old)
    found = read_record(tmp_path / "model")
    assert found.training.class_weights["harm_any"] == pytest.approx((1.0, 2.5), rel=1e-15)
    assert found == replace(record, training=found.training)
    assert found.training == replace(record.training, class_weights=found.training.class_weights)


def test_model_folder_names_no_path_of_this_machine(folders: tuple[Path, Path]) -> None:
    for path in folders[0].rglob("*.json"):
        assert str(EMBEDDED_FOLDER.parents[1]) not in path.read_text()
    assert {path.suffix for path in folders[0].rglob("*") if path.is_file()} == {".json", ".safetensors"}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_adapters_and_heads_are_float32(dtype: str, tmp_path: Path) -> None:
    config = BackboneConfig(dtype=dtype)  # type: ignore[arg-type]
    write_model(tmp_path / "reward", REWARD, backbone=config)
    write_model(tmp_path / "cost", COST, backbone=config)
    model, backbone, _ = load_models([tmp_path / "reward", tmp_path / "cost"])
    for name, parameter in model.named_parameters():
        trained = "lora_" in name or name.startswith("score_heads.")
        assert parameter.dtype == (torch.float32 if trained else getattr(torch, dtype)), name
    with torch.inference_mode():
        output = model(build_inputs(backbone, list(PROMPTS), list(VIDEOS), "cpu"))
    assert {values.dtype for values in output.values()} == {torch.float32}
    assert all(torch.isfinite(values).all() for values in output.values())


def test_heads_that_compare_begin_small_and_those_of_labels_with_unit_spread() -> None:
    heads = ("reward", "cost", "aesthetics", *LABEL_HEADS)
    torch.manual_seed(0)
    model = ScoreModel(load_backbone(BackboneConfig()), {"joint": heads}, LORA)
    for head in heads:
        weight = model.score_heads[head].weight
        spread = 1.0 / math.sqrt(weight.numel() + 1) if head in LABEL_HEADS else 0.02
        assert float(weight.std()) == pytest.approx(spread, rel=0.25), head


def test_only_adapters_and_heads_are_trained() -> None:
    model, _ = build_score_model(REWARD)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trained
    assert all("lora_" in name or name.startswith("score_heads.") for name in trained)
    assert any("lora_" in name for name in trained)
    assert not any("visual" in name for name in trained)
    bare, _ = build_score_model(REWARD, replace(LORA, rank=0))
    assert [n for n, p in bare.named_parameters() if p.requires_grad] == [
        "score_heads.reward.weight",
        "score_heads.reward.bias",
    ]
    assert bare.peft_model is None


def edit_entry(folder: Path, entry: str, **changes: object) -> None:
    fields = json.loads((folder / "model.json").read_text())
    edit_json(folder / "model.json", **{entry: {**fields[entry], **changes}})


@pytest.mark.parametrize(("names", "part"), [(("q_proj", "qproj"), "got qproj"), (("(",), "got ("), ((), "got none")])
def test_adapters_on_layers_that_are_not_there(names: tuple[str, ...], part: str) -> None:
    with one_line(ConfigError, "model.lora.target_modules", "gate_proj", "language model of tiny", part):
        build_score_model(REWARD, replace(LORA, target_modules=names))


ADAPTER = Path("adapters/reward/adapter_model.safetensors")


def change_tensors(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)


@pytest.mark.parametrize(
    ("damage", "parts"),
    [
        (lambda f: (f / "heads.safetensors").unlink(), ("heads.safetensors", "missing")),
        (lambda f: change_tensors(f / "heads.safetensors", lambda t: t.pop("reward.bias")), ("lacks", "reward.bias")),
        (lambda f: change_tensors(f / "heads.safetensors", lambda t: t.update(x=torch.ones(1))), ("tensor x",)),
        (
            lambda f: change_tensors(f / "heads.safetensors", lambda t: t.update({"reward.bias": torch.ones(2)})),
            ("reward.bias", "(2,)", "(1,)"),
        ),
        (
            lambda f: change_tensors(
                f / "heads.safetensors", lambda t: t.update({"reward.bias": torch.ones(1, dtype=torch.bfloat16)})
            ),
            ("reward.bias", "bfloat16", "float32"),
        ),
        (lambda f: cut_short(f / "heads.safetensors"), ("heads.safetensors", "cannot be read")),
        (lambda f: replace_by_pickle(f / "heads.safetensors"), ("heads.safetensors", "cannot be read")),
        (lambda f: (f / ADAPTER).unlink(), (str(ADAPTER), "missing")),
        (lambda f: change_tensors(f / ADAPTER, lambda t: t.pop(min(t))), (str(ADAPTER), "lacks")),
        (lambda f: change_tensors(f / ADAPTER, lambda t: t.update(x=torch.ones(1))), (str(ADAPTER), "tensor x")),
        (lambda f: change_tensors(f / ADAPTER, lambda t: t.update({min(t): torch.ones(3, 3)})), ("(3, 3)",)),
        (lambda f: cut_short(f / ADAPTER), (str(ADAPTER), "cannot be read")),
        (lambda f: replace_by_pickle(f / ADAPTER), (str(ADAPTER), "cannot be read")),
        (lambda f: (f / "model.json").unlink(), ("model.json", "<run>/model")),
        (lambda f: (f / "model.json").write_text("{"), ("model.json", "damaged")),
        (lambda f: (f / "model.json").write_text("[]"), ("model.json", "damaged")),
        (lambda f: edit_json(f / "model.json", format_version=99), ("format version 99",)),
        (lambda f: edit_json(f / "model.json", template={"name": "other", "hash": "0"}), ("template other",)),
        (lambda f: edit_json(f / "model.json", sampling={"num_frames": 0}), ("damaged", "num_frames")),
        (lambda f: edit_json(f / "model.json", backbone={"dtype": "float16", "fingerprint": ""}), ("dtype",)),
        (lambda f: edit_json(f / "model.json", format_version=2), ("format version 2", "reads 3 to 5")),
        (lambda f: edit_json(f / "model.json", training=["step"]), ("model.json", "damaged", "training")),
        (lambda f: edit_json(f / "model.json", training={"step": "3"}), ("damaged", "training.step", "a whole number")),
        (lambda f: edit_json(f / "model.json", training={"stepp": 3}), ("damaged", "training.stepp", "unknown")),
        (lambda f: edit_json(f / "model.json", training={"merged_from": {"lora": {}}}), ("damaged", "fingerprint")),
        (lambda f: edit_entry(f, "backbone", path=3), ("model.json", "damaged", "path", "3")),
        (lambda f: edit_entry(f, "backbone", fingerprint=None), ("model.json", "damaged", "fingerprint")),
        (lambda f: edit_entry(f, "lora", alpha=float("nan")), ("model.json", "damaged", "lora.alpha", "nan")),
        (lambda f: edit_entry(f, "lora", rank=2.0), ("model.json", "damaged", "lora.rank", "2.0")),
        (lambda f: edit_entry(f, "lora", target_modules="q_proj"), ("model.json", "damaged", "target_modules")),
        (lambda f: edit_json(f / "model.json", heads_of_adapter={"reward": ["reward", "cost"]}), ("lacks", "cost")),
        (lambda f: edit_json(f / "model.json", heads_of_adapter={}), ("model.json", "damaged")),
        (lambda f: edit_json(f / "model.json", heads_of_adapter={"../x": ["reward"]}), ("damaged", "'../x'")),
        (lambda f: edit_json(f / "model.json", heads_of_adapter={"/tmp/x": ["reward"]}), ("damaged", "'/tmp/x'")),
        (lambda f: edit_json(f / "model.json", heads_of_adapter={"reward": ["../x"]}), ("damaged", "'../x'")),
        (
            lambda f: edit_json(f / "model.json", heads_of_adapter={"reward": "reward"}),
            ("damaged", "got 'reward'"),
        ),
        (lambda f: edit_json(f / "model.json", heads_of_adapter={"a": ["cost"], "b": ["cost"]}), ("at most once",)),
        (lambda f: edit_json(f / "model.json", checksums={"../x": ""}), ("'../x', which is no file in it",)),
        (lambda f: edit_json(f / "model.json", checksums={"/etc/x": ""}), ("'/etc/x', which is no file in it",)),
        (lambda f: edit_json(f / "model.json", checksums={"a\0": ""}), ("which is no file in it",)),
    ],
)
def test_damaged_model_folder(
    folders: tuple[Path, Path], tmp_path: Path, damage: Callable[[Path], object], parts: tuple[str, ...]
) -> None:
    folder = Path(shutil.copytree(folders[0], tmp_path / "reward"))
    damage(folder)
    with one_line(CheckpointError, str(folder), *parts):
        load_models([folder])


@pytest.mark.parametrize("name", ["heads.safetensors", ADAPTER])
def test_a_flipped_bit_in_weights_is_named(folders: tuple[Path, Path], tmp_path: Path, name: str | Path) -> None:
    folder = Path(shutil.copytree(folders[0], tmp_path / "reward"))
    content = bytearray((folder / name).read_bytes())
    content[-1] ^= 1
    (folder / name).write_bytes(content)
    with one_line(CheckpointError, f"{folder / name}: damaged, its bytes are not those that were written"):
        load_models([folder])
    # Before there were checksums.
    edit_json(folder / "model.json", format_version=4)
    load_models([folder])


def test_pickles_are_never_unpickled(folders: tuple[Path, Path], tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple:
            return (Path.touch, (tmp_path / "exploded",))

    for name in ("heads.safetensors", ADAPTER):
        folder = Path(shutil.copytree(folders[0], tmp_path / f"model-{Path(name).name}"))
        (folder / name).write_bytes(pickle.dumps(Bomb()))
        (folder / "model.bin").write_bytes(pickle.dumps(Bomb()))
        with one_line(CheckpointError, "cannot be read"):
            load_models([folder])
    assert not (tmp_path / "exploded").exists()


def test_folders_that_do_not_fit_each_other(folders: tuple[Path, Path], tmp_path: Path) -> None:
    reward, _ = folders
    other = write_model(tmp_path / "random", COST, backbone=BackboneConfig(initialization="random", random_seed=1))
    with one_line(CheckpointError, "different backbones", str(other), str(reward)):
        load_models([reward, other])
    with one_line(CheckpointError, "different LoRA configurations"):
        load_models([reward, write_model(tmp_path / "rank", COST, LoraConfig(rank=3))])
    with one_line(CheckpointError, "different backbone types"):
        load_models([reward, write_model(tmp_path / "type", COST, backbone=BackboneConfig(dtype="bfloat16"))])
    with one_line(CheckpointError, "adapter reward"):
        load_models([reward, reward])
    with one_line(CheckpointError, "head reward"):
        load_models([reward, write_model(tmp_path / "joint", JOINT)])
    with one_line(CheckpointError, "no model folder"):
        load_models([])


def test_backbone_that_moved(folders: tuple[Path, Path], copied: Path, tmp_path: Path) -> None:
    model, record = build_score_model(REWARD, backbone=BackboneConfig(path=str(copied)))
    folder = tmp_path / "reward"
    save_model(model, record, folder, whole_weights(model))
    moved = copied.rename(tmp_path / "moved")
    with one_line(CheckpointError, str(copied), "no such file or folder"):
        load_models([folder])
    loaded, backbone, joined = load_models([folder], backbone_path=str(moved))
    assert joined.backbone.path == str(moved)
    expected = score(model, load_backbone(BackboneConfig()), list(PROMPTS), list(VIDEOS))["reward"]
    assert np.array_equal(score(loaded, backbone, list(PROMPTS), list(VIDEOS))["reward"], expected)
    # One weight of another value is another backbone.
    change_tensors(moved / "model.safetensors", lambda t: t[min(t)].view(-1)[0].add_(1.0))
    with one_line(CheckpointError, str(moved), "right backbone"):
        load_models([folder], backbone_path=str(moved))


def test_run_folder_stands_for_its_model(folders: tuple[Path, Path], tmp_path: Path) -> None:
    shutil.copytree(folders[0], tmp_path / "run" / "model")
    assert read_record(tmp_path / "run") == read_record(folders[0])


def test_template_hash_sees_every_part() -> None:
    hashes = {"qwen-chat-v2": "6cd9f1abb0fd1bf5"}  # folders that were written before there were other families
    for family in FAMILIES.values():
        name, first = family.template.name, family.template_hash()
        assert hashes.setdefault(name, first) == first
        for part in ("before", "before_prompt", "after_prompt", "before_response", "after_response"):
            changed = replace(family.template, **{part: (*getattr(family.template, part), " ")})
            assert type(name, (family,), {"template": changed}).template_hash() != first, part
        segments = family.video_segments

        def shortened(cls: type, seconds: list[float], tokens: int, segments: Callable = segments) -> list:
            return segments(seconds, tokens)[1:]

        assert type(name, (family,), {"video_segments": classmethod(shortened)}).template_hash() != first
    assert len(set(hashes.values())) == len(FAMILIES)


def test_sampled_short_clip_is_scored(joint: tuple[ScoreModel, Backbone]) -> None:
    """A clip of one frame is shorter than the temporal patch."""
    video = sample_video(np.zeros((1, 64, 64, 3), np.uint8), np.zeros(1), SAMPLING)
    assert np.isfinite(score(*joint, ["a"], [video])["reward"]).all()
