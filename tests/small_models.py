"""Small model folders and videos for tests, built in process on the embedded backbone; none is trained."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache, lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from safe_rlhf_video.errors import SafeRLHFVideoError
from safe_rlhf_video.models.backbones import Backbone, load_backbone
from safe_rlhf_video.models.config import BackboneConfig, LoraConfig, Pooling, TrainedPart
from safe_rlhf_video.models.folder import load_models, save_model
from safe_rlhf_video.models.inputs import build_inputs
from safe_rlhf_video.models.record import ModelRecord, TrainingFacts
from safe_rlhf_video.models.score_model import ScoreModel
from safe_rlhf_video.models.weight_files import checksum_file, save_tensors
from safe_rlhf_video.responses import Response
from safe_rlhf_video.scoring import model_scorer
from safe_rlhf_video.video.sampling import Sampling, Video

SAMPLING = Sampling(num_frames=4, min_pixels=16 * 16, max_pixels=24 * 24, size_multiple=8)
LORA = LoraConfig(rank=2, alpha=8.0)
REWARD: Mapping[str, tuple[str, ...]] = {"reward": ("reward",)}
COST: Mapping[str, tuple[str, ...]] = {"cost": ("cost",)}
JOINT: Mapping[str, tuple[str, ...]] = {"joint": ("reward", "cost")}
PROMPTS = (
    "a",
    "a red circle moving left at night",
    "show me a checkerboard in purple that is growing by the sea, with an anchor emblem, " * 4,
    "",
    "ein grüner Kreis 🐟\nzweite Zeile",
)


def build_score_model(
    heads_of_adapter: Mapping[str, tuple[str, ...]] = REWARD,
    lora: LoraConfig = LORA,
    backbone: BackboneConfig | None = None,
    seed: int = 0,
    pooling: Pooling = "last_token",
    trained_parts: tuple[TrainedPart, ...] = (),
    gradient_checkpointing: bool = False,
) -> tuple[ScoreModel, ModelRecord]:
    """A model in evaluation mode whose trained parts change the backbone's states, as a trained one's do."""
    config = backbone or BackboneConfig()
    loaded = load_backbone(config)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = ScoreModel(loaded, heads_of_adapter, lora, pooling, trained_parts, gradient_checkpointing).eval()
        for name, parameter in model.named_parameters():
            if "lora_B" in name or name.endswith("query"):  # zero at the start, which would hide what is not loaded
                torch.nn.init.normal_(parameter, std=0.05 if "lora_B" in name else 1.0)
        with torch.no_grad():
            for part in trained_parts:
                for parameter in model.trained()[part].values():
                    parameter += 0.02 * torch.randn_like(parameter)
    facts = TrainingFacts(step=1)
    record = ModelRecord(config, loaded.fingerprint, SAMPLING, lora, heads_of_adapter, facts, pooling, trained_parts)
    return model, record


def whole_weights(model: ScoreModel) -> dict[str, torch.Tensor]:
    """What is trained of a model that is not spread over processes."""
    return {name: one.detach() for part in model.trained().values() for name, one in part.items()}


def write_model(
    folder: Path,
    heads_of_adapter: Mapping[str, tuple[str, ...]] = REWARD,
    lora: LoraConfig = LORA,
    backbone: BackboneConfig | None = None,
    seed: int = 0,
    trained_parts: tuple[TrainedPart, ...] = (),
) -> Path:
    """A model folder as training writes it."""
    files = _model_files(tuple(heads_of_adapter.items()), lora, backbone or BackboneConfig(), seed, trained_parts)
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


@cache
def _model_files(
    heads_of_adapter: tuple[tuple[str, tuple[str, ...]], ...],
    lora: LoraConfig,
    backbone: BackboneConfig,
    seed: int,
    trained_parts: tuple[TrainedPart, ...],
) -> dict[str, bytes]:
    """The files of a model folder, by their paths in it. The same model is asked for again and again."""
    model, record = build_score_model(dict(heads_of_adapter), lora, backbone, seed, trained_parts=trained_parts)
    with TemporaryDirectory() as base:
        folder = Path(base) / "model"
        save_model(model, record, folder, whole_weights(model))
        return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write_reward_and_cost(base: Path) -> tuple[Path, Path]:
    """The folders of two untrained models, of other weights each."""
    return write_model(base / "reward", REWARD, seed=1), write_model(base / "cost", COST, seed=2)


@lru_cache(8)
def _load_once(folders: tuple[str | Path, ...], *arguments: Any) -> Any:
    return load_models(folders, *arguments)


def share_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the scorers of a test share the models that they load from folders, whose weights must not change."""
    monkeypatch.setattr(model_scorer, "load_models", lambda folders, *rest: _load_once(tuple(folders), *rest))


def noise_video(num_frames: int, height: int, width: int, seed: int, fps: float = 4.0) -> Video:
    """Frames of blocky noise."""
    blocks = np.random.default_rng(seed).integers(0, 256, (num_frames, height // 8, width // 8, 3), dtype=np.uint8)
    return Video(blocks.repeat(8, axis=1).repeat(8, axis=2), np.arange(num_frames) / fps)


def score(model: ScoreModel, backbone: Backbone, texts: list[str], videos: Sequence[Response]) -> dict[str, np.ndarray]:
    with torch.inference_mode():
        output = model(build_inputs(backbone, texts, videos, "cpu"))
    return {head: values.double().numpy() for head, values in output.items()}


def count_kept(model: ScoreModel, inputs: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], int]:
    """Scores, and the bytes that autograd keeps for their backward pass, each storage once, but for the parameters'."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        scores = model(inputs)
    return scores, sum(storage.nbytes() for storage in kept.values())


def rewrite_heads(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Changes the heads of a model folder as if they had been trained so, with their checksum."""
    path = folder / "heads.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_tensors(tensors, path)
    record = json.loads((folder / "model.json").read_text(encoding="utf-8"))
    record["checksums"][path.name] = checksum_file(path)
    (folder / "model.json").write_text(json.dumps(record), encoding="utf-8")


@contextmanager
def one_line(error_type: type[SafeRLHFVideoError], *parts: str) -> Iterator[None]:
    """The block raises this error, in one line that holds all parts."""
    with pytest.raises(error_type) as caught:
        yield
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    for part in parts:
        assert part in message, message
