"""What a run will need in memory and arithmetic, from shapes alone: a model without weights on torch's meta device.

Nothing is read but config.json and the processor's file. What the language model keeps for the backward pass is read
off autograd: its forward pass runs on tensors that have a shape and no content.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Final, cast

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from safe_rlhf_video.models.backbones import Backbone, Reader, build_outline, outline_backbone
from safe_rlhf_video.models.config import ModelConfig
from safe_rlhf_video.models.families import Family
from safe_rlhf_video.models.score_model import ScoreModel
from safe_rlhf_video.training.config import BUCKET_SIZE, TrainConfig
from safe_rlhf_video.video.sampling import Sampling

TEXT_TOKENS = 60  # of a prompt and the chat around it, about
LETTERS_A_TOKEN = 3  # of what a family writes about times, about
MAX_LIVE_PARAMETERS = 1_000_000_000  # DeepSpeed's default of what ZeRO 3 holds whole, elements
GB = 1e9
ATTENTION: Final = "sdpa"  # what other kernels keep is what `_FusedAttention` says; none of them is called


@dataclass(frozen=True)
class MicroBatch:
    """What one rank passes through the model at once.

    Attributes:
        tokens: Of the language model, padding included.
        videos: Rows of the batch, texts among them.
        video_tokens: Of all clips.
        steps: Of all clips (frames, or temporal patches of several): the patches of one attend to each other.
    """

    tokens: int
    videos: int
    video_tokens: int
    steps: int

    @property
    def length(self) -> int:
        """Tokens of a row."""
        return math.ceil(self.tokens / self.videos)


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one rank.

    Attributes:
        loading: The whole model, which every rank has on its device before ZeRO 3 divides it.
        frozen_weights, trained_weights: Of the model, as they lie there in a step.
        gradients: Of what is trained, float32.
        optimiser_state: Adam's moments, averages of the weights, and with ZeRO 1 and 2 DeepSpeed's own float32 copy of
            the weights.
        buffers: DeepSpeed's for communication, and with ZeRO 3 the weights that are gathered at a time.
        saved_states: What autograd keeps of the language model and the heads for the backward pass.
        vision_states: The vision tower's, which pass.
    """

    loading: int
    frozen_weights: int
    trained_weights: int
    gradients: int
    optimiser_state: int
    buffers: int
    saved_states: int
    vision_states: int

    @property
    def training(self) -> int:
        """The sum of all but `loading`: at least a step's peak, since not all of it is there at the same time."""
        return (
            self.frozen_weights
            + self.trained_weights
            + self.gradients
            + self.optimiser_state
            + self.buffers
            + self.saved_states
            + self.vision_states
        )

    @property
    def total(self) -> int:
        """What a device must have."""
        return max(self.loading, self.training)


@dataclass(frozen=True)
class Flops:
    """Floating-point operations of one micro-batch, a multiplication and an addition being two.

    Attributes:
        vision, projector, language, adapters: Of the linear layers there.
        attention: Of the language model's scores and weighted sums; half of the square, since it looks back only.
    """

    vision: float
    projector: float
    language: float
    adapters: float
    attention: float

    @property
    def total(self) -> float:
        return self.vision + self.projector + self.language + self.adapters + self.attention


def build_on_meta(
    backbone_config: PreTrainedConfig, family: Family, config: ModelConfig, heads: Sequence[str], dtype: torch.dtype
) -> ScoreModel:
    """The model that training builds, with shapes and types but no weights.

    Args:
        heads: on one adapter.
        dtype: of the frozen weights.
    """
    no_tokenizer = cast(PreTrainedTokenizerBase, None)  # feeds no text
    reader = Reader(no_tokenizer, family, backbone_config, backbone_config.get_text_config().max_position_embeddings)
    return _build_on(build_outline(reader, config.backbone, dtype, ATTENTION), config, heads)


def load_on_meta(config: ModelConfig, heads: Sequence[str], device_type: str) -> ScoreModel:
    """The same for a checkpoint folder or hub id, of which no weights are read.

    Args:
        device_type: where the run will be, "cpu" or "cuda": the frozen weights' type may depend on it.

    Raises:
        CheckpointError: the folder or hub id is missing, its family is not supported, or a file is damaged.
    """
    return _build_on(outline_backbone(replace(config.backbone, attention=ATTENTION), device_type), config, heads)


def _build_on(outline: Backbone, config: ModelConfig, heads: Sequence[str]) -> ScoreModel:
    with torch.device("meta"):
        return ScoreModel(outline, {"joint": tuple(heads)}, config.lora, config.pooling, config.trained_parts)


def count_micro_batch(
    family: Family, sampling: Sampling, size: tuple[int, int], videos: int, text_tokens: int = TEXT_TOKENS
) -> MicroBatch:
    """A micro-batch of clips of one size.

    Args:
        size: Height and width of a frame, as sampled.
        text_tokens: Of a clip's prompt and the chat around it.
    """
    seconds = family.step_seconds([frame / 2 for frame in range(sampling.num_frames)])
    segments = family.video_segments(seconds, family.count_step_tokens(*size))
    written = sum(
        -(-len(one) // LETTERS_A_TOKEN) if isinstance(one, str) else one != family.video_token for one in segments
    )
    video_tokens = family.count_video_tokens(sampling.num_frames, *size)
    return MicroBatch(
        videos * (video_tokens + written + text_tokens), videos, videos * video_tokens, videos * len(seconds)
    )


def estimate_run(
    config: TrainConfig, heads: Sequence[str], batch: MicroBatch, world_size: int, device_type: str
) -> MemoryEstimate:
    """Bytes on each rank of a run, before any weights are loaded.

    Args:
        batch: the largest one that a rank will meet.

    Raises:
        CheckpointError: as `load_on_meta`.
    """
    return estimate_memory(
        load_on_meta(config.model, heads, device_type),
        batch,
        world_size,
        config.engine.zero_stage,
        config.model.gradient_checkpointing,
        config.engine.deepspeed.get("zero_optimization"),
        bool(config.optimization.averaging),
    )


def estimate_memory(
    model: ScoreModel,
    batch: MicroBatch,
    world_size: int = 1,
    zero_stage: int = 0,
    gradient_checkpointing: bool = False,
    zero_options: Mapping[str, Any] | None = None,
    averages: bool = False,
) -> MemoryEstimate:
    """Bytes on each rank, divided among them as DeepSpeed does.

    Not in it: the allocator's slack, kernels' workspaces, the CUDA context (about 0.5 GB), another process's memory.

    Args:
        model: of `build_on_meta`.
        zero_options: DeepSpeed's section `zero_optimization`, for the sizes of its buffers.
        averages: whether the optimiser averages the weights.
    """
    options = zero_options or {}
    trained_ids = {id(one) for part in model.trained().values() for one in part.values()}
    trained = sum(one.numel() for one in model.parameters() if id(one) in trained_ids)
    frozen = [one for one in model.parameters() if id(one) not in trained_ids]
    frozen_bytes = sum(one.nbytes for one in frozen)
    whole = 4 * trained  # float32
    loading = frozen_bytes + whole
    share = math.ceil(trained / world_size) * 4
    # DeepSpeed 0.19, runtime/zero/stage_1_and_2.py and stage3.py: a bucket of the whole size is always allocated.
    bucket = 4 * int(options.get("reduce_bucket_size", min(BUCKET_SIZE, trained)))
    kept = 3 if averages else 2  # of every weight: Adam's two moments
    saved, vision = _saved_states(model, batch, gradient_checkpointing), _vision_states(model, batch)
    if zero_stage == 0:
        buffers = min(bucket, whole) if world_size > 1 else 0
        return MemoryEstimate(loading, frozen_bytes, whole, whole, kept * whole, buffers, saved, vision)
    if zero_stage == 1:  # gradients whole, and this rank's share of their mean
        return MemoryEstimate(loading, frozen_bytes, whole, whole + share, (kept + 1) * share, bucket, saved, vision)
    if zero_stage == 2:
        return MemoryEstimate(loading, frozen_bytes, whole, share, (kept + 1) * share, bucket, saved, vision)
    live = int(options.get("stage3_max_live_parameters", MAX_LIVE_PARAMETERS))
    gathered = int(loading * min(1.0, live / (sum(one.numel() for one in frozen) + trained)))
    return MemoryEstimate(
        loading, math.ceil(frozen_bytes / world_size), share, share, kept * share, bucket + gathered, saved, vision
    )


def describe_memory(estimate: MemoryEstimate, device_memory: int | None = None) -> list[str]:
    """One or two lines for a user.

    Args:
        device_memory: bytes of the device; None where it is not known or is the host's.
    """
    parts = [
        ("frozen weights", estimate.frozen_weights),
        ("trained weights", estimate.trained_weights),
        ("gradients", estimate.gradients),
        ("optimiser state", estimate.optimiser_state),
        ("buffers", estimate.buffers),
        ("states for the backward pass", estimate.saved_states),
        ("vision tower", estimate.vision_states),
    ]
    sizes = " + ".join(f"{name} {_gigabytes(size)}" for name, size in parts if size)
    peak = f"{_gigabytes(estimate.loading)} GB until the model is divided, then " if _is_divided(estimate) else ""
    lines = [f"memory, an estimate for each process: {peak}{_gigabytes(estimate.training)} GB = {sizes}"]
    if device_memory is not None:
        has = f"the device has {_gigabytes(device_memory)} GB"
        if estimate.loading > device_memory:
            lines.append(
                f"{has}, less than the whole model, which every process loads at any engine.zero_stage: take a smaller "
                "backbone, or name less in model.trained_parts"
            )
        elif estimate.total > device_memory:
            lines.append(
                f"{has}, less than the estimate: set model.gradient_checkpointing to true, lower "
                "optimization.micro_batch_tokens, raise engine.zero_stage with more GPUs, or lower sampling.max_pixels"
            )
        else:
            lines.append(f"{has}; PyTorch's allocator needs some of the rest")
    return lines


def count_flops(model: ScoreModel, batch: MicroBatch, backward: bool = True) -> Flops:
    """Model FLOPs of one micro-batch, forward and backward; nothing that is computed again is counted twice.

    A linear layer of N weights takes 2N a token forward, 2N for the gradient of its input and 2N for that of its
    weights: 6N where it is trained, 4N where it is frozen and passes a gradient on, 2N in a tower that needs none
    (Kaplan et al. 2020, arXiv 2001.08361). Attention over L tokens: 4 L^2 a layer and feature (PaLM, arXiv 2204.02311,
    appendix B), half of it where tokens look back only, three times that with a backward pass.

    Args:
        model: of `build_on_meta`, or a real one.
    """
    plain, family = _plain_backbone(model), model.family
    config = plain.config
    text, vision = config.get_text_config(), config.vision_config
    parts = model.trained()
    passes = backward and bool({"adapter", "projector", "language_model"} & set(parts))
    trained, frozen = (6, 4 if passes else 2) if backward else (2, 2)
    patches = batch.video_tokens * _merged_patches(config)
    flops = dict.fromkeys(("vision", "projector", "language", "adapters"), 0.0)
    for name, module in plain.named_modules():
        if not isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d):
            continue
        weights = module.weight.numel()
        if ".lora_" in name:
            flops["adapters"] += trained * weights * batch.tokens
        elif _is_within(name, (family.language_model,)):
            flops["language"] += (trained if "language_model" in parts else frozen) * weights * batch.tokens
        elif _is_within(name, family.projector):
            flops["projector"] += (trained if "projector" in parts else 2) * weights * batch.video_tokens
        elif _is_within(name, (family.vision_tower,)):
            flops["vision"] += 2 * weights * patches
    if batch.steps:
        features, _ = _vision_sizes(model)
        flops["vision"] += sum(4 * patches * seen * features for seen in _patches_seen(vision, patches / batch.steps))
    width = text.num_attention_heads * (getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads)
    forward = 4 * batch.tokens * batch.length * width * text.num_hidden_layers / 2
    return Flops(**flops, attention=forward * (3 if passes else 1))


def _plain_backbone(model: ScoreModel) -> PreTrainedModel:
    peft_model = model.peft_model
    return cast(PreTrainedModel, model.backbone if peft_model is None else peft_model.get_base_model())


def _is_within(name: str, modules: Sequence[str]) -> bool:
    return any(f"{name}.".startswith(f"{module}.") for module in modules)


def _vision_sizes(model: ScoreModel) -> tuple[int, int]:
    """Features of a patch between the layers of the vision tower, and inside their inner layers.

    Read off what linear layers take, attention first: families name the two differently in their configurations.
    """
    family = model.family
    widths = [
        module.in_features
        for name, module in _plain_backbone(model).named_modules()
        if isinstance(module, nn.Linear)
        and _is_within(name, (family.vision_tower,))
        and not _is_within(name, family.projector)
    ]
    return widths[0], next((width for width in widths if width != widths[0]), widths[0])


def _merged_patches(config: PreTrainedConfig) -> int:
    """Patches of the vision tower that make one video token."""
    side: int | None = getattr(config, "scale_factor", None)
    if side is None:
        side = getattr(config.vision_config, "spatial_merge_size", 1)
    return int(side) ** 2


def _patches_seen(vision: PreTrainedConfig, step_patches: float) -> Iterator[float]:
    """For each layer of the tower, how many patches attend to each other."""
    layers = getattr(vision, "depth", None) or vision.num_hidden_layers
    whole = getattr(vision, "fullatt_block_indexes", None)
    for layer in range(layers):
        if whole is None or layer in whole:
            yield step_patches
        else:
            yield min(step_patches, (vision.window_size // vision.patch_size) ** 2)


class _FusedAttention(torch.autograd.Function):
    """What the fused kernels (FlashAttention, memory-efficient) keep; no arithmetic."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        rows, heads, length, _ = query.shape
        output = query.new_empty(rows, length, heads, value.shape[-1]).transpose(1, 2)  # as the kernels lay it out
        log_sums = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, log_sums)
        return output


class _RunLikeReal(TorchFunctionMode):
    """Inside it, the meta device keeps what a real one would.

    Attention is `_FusedAttention`, where torch would take the path that keeps L x L; and linear layers cast as
    torch.autocast does, which passes tensors on the meta device by: whatever is cast is kept besides.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        options = kwargs or {}
        if func is functional.scaled_dot_product_attention:
            query, key, value = (one.to(self.dtype) for one in args[:3])
            return _FusedAttention.apply(query, key, value)
        if func is functional.linear:
            cast_args: Any = [one if one is None else one.to(self.dtype) for one in args]
            return func(*cast_args, **options)
        if func is Tensor.__bool__:
            return True  # all that is asked: do the positions of a row follow each other?
        return func(*args, **options)


@contextmanager
def _keep_count(model: nn.Module) -> Iterator[list[int]]:
    """Inside it, the one number in the list is the bytes that autograd has saved so far, the model's own apart."""
    seen = {one.untyped_storage()._cdata: None for one in model.parameters()}
    alive: list[torch.UntypedStorage] = []  # so that no address is used twice
    total = [0]

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in seen:
            seen[storage._cdata] = None
            alive.append(storage)
            total[0] += storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield total


def _saved_states(model: ScoreModel, batch: MicroBatch, gradient_checkpointing: bool) -> int:
    """Bytes that the language model and the heads keep for the backward pass."""
    language_model = cast(PreTrainedModel, _plain_backbone(model).get_submodule(model.family.language_model)).train()
    hidden_size, length = language_model.config.hidden_size, batch.length
    layers = cast(nn.ModuleList, language_model.layers)
    before: list[int] = []
    with torch.device("meta"), _RunLikeReal(model.dtype), _keep_count(model) as total:
        states = torch.empty(batch.videos, length, hidden_size, dtype=model.dtype)
        states.requires_grad_("projector" in model.trained_parts)
        hooks = [layer.register_forward_pre_hook(lambda *_: before.append(total[0])) for layer in layers]
        hidden = language_model(inputs_embeds=states, use_cache=False).last_hidden_state
        for hook in hooks:
            hook.remove()
        after = total[0]
        for head in model.score_heads.values():
            head(hidden, torch.ones(batch.videos, length, dtype=torch.long))
    projector = 0
    if "projector" in model.trained_parts:
        plain = _plain_backbone(model)
        modules = [module for name, module in plain.named_modules() if _is_within(name, model.family.projector)]
        linear = sum(module.in_features + module.out_features for module in modules if isinstance(module, nn.Linear))
        # Norms stand before the patches of a token are merged, and keep what they are given in float32.
        norms = sum("Norm" in type(module).__name__ for module in modules)
        features, _ = _vision_sizes(model)
        merged = _merged_patches(plain.config) * features
        projector = batch.video_tokens * (model.dtype.itemsize * linear + 4 * norms * merged)
    if not gradient_checkpointing:
        return total[0] + projector
    of_layers = [end - start for start, end in zip(before, [*before[1:], after], strict=True)]
    return total[0] - sum(of_layers) + max(of_layers) + len(of_layers) * states.nbytes + projector


def _vision_states(model: ScoreModel, batch: MicroBatch) -> int:
    """Bytes of the widest moment of the frozen vision tower: one layer's attention or its inner layer, and its pixels.

    Nothing is kept of a tower that needs no gradient.
    """
    plain = _plain_backbone(model)
    vision = plain.config.vision_config
    patches = batch.video_tokens * _merged_patches(plain.config)
    size = next(plain.get_submodule(model.family.vision_tower).parameters()).element_size()
    width, inner_width = _vision_sizes(model)
    # Residual and normed states, queries, keys and values, and of Qwen-VL queries and keys in float32 as they turn.
    attention = 5 * width * size + 2 * width * 4
    inner = (2 * width + 3 * inner_width) * size
    pixels = 4 * 3 * vision.patch_size**2 * getattr(vision, "temporal_patch_size", 1)
    return patches * (max(attention, inner) + pixels)


def _is_divided(estimate: MemoryEstimate) -> bool:
    return estimate.loading > estimate.frozen_weights + estimate.trained_weights


def _gigabytes(size: float) -> str:
    return f"{size / GB:.1f}" if size >= 0.1 * GB else f"{size / GB:.2g}"
