"""Scores of videos: a backbone, an adapter for each model or some parts trained in full, float32 heads."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import get_args

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from transformers import PreTrainedModel

from safe_rlhf_video.errors import ConfigError
from safe_rlhf_video.heads import HEADS
from safe_rlhf_video.kinds.targets import num_thresholds_of
from safe_rlhf_video.models.backbones import Backbone
from safe_rlhf_video.models.config import LoraConfig, Pooling, TrainedPart
from safe_rlhf_video.models.families import Family
from safe_rlhf_video.models.pooling import attend, last_attended

THRESHOLDS = "thresholds/"  # before a head's name: its thresholds, among the scores of the heads

# Of the weights of a head that learns from comparisons, as transformers begins its own layers. With scores of unit
# spread (Stiennon et al. 2020, arXiv 2009.01325), the first steps of a narrow backbone unlearn an order that was drawn
# by chance (docs/benchmarks.md). Heads of labels keep that spread: without, a severity of texts is learned more slowly.
COMPARED_START_STD = 0.02


class ScoreModel(nn.Module):
    """Heads on one backbone, which is frozen but for LoRA adapters and the parts that are trained in full.

    Args:
        backbone: as loaded; its model is changed in place by the adapters, and the trained parts become float32.
        heads_of_adapter: adapter name -> names of the heads that read its states. Training builds one adapter;
            only a scorer holds several, and runs the backbone once for each.
        lora: the adapters' shape; rank 0 leaves the backbone as it is.
        pooling: what a head reads of the token states.
        trained_parts: what of the backbone is trained in full (`config.ModelConfig`).
        gradient_checkpointing: whether the layers are run again in the backward pass, while training.

    Raises:
        ConfigError: the language model has no linear layers of a name in `lora.target_modules`.
    """

    def __init__(
        self,
        backbone: Backbone,
        heads_of_adapter: Mapping[str, tuple[str, ...]],
        lora: LoraConfig,
        pooling: Pooling = "last_token",
        trained_parts: Sequence[TrainedPart] = (),
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        self._pass = threading.Lock()
        self.heads_of_adapter = dict(heads_of_adapter)
        self.lora = lora
        self.trained_parts = tuple(trained_parts)
        self.family = backbone.family
        self.dtype = backbone.model.dtype  # the frozen weights', and what is computed in
        self.backbone: nn.Module = backbone.model
        if lora.rank:
            _check_target_modules(backbone, lora)
            first, *others = self.heads_of_adapter
            peft_config = _peft_config(lora, backbone.family.language_model)
            model = get_peft_model(backbone.model, peft_config, adapter_name=first)
            for name in others:
                model.add_adapter(name, peft_config)
            self.backbone = model
        for part in self.trained_parts:  # after the adapters, which freeze everything else
            for name in part_modules(self.family, part):
                backbone.model.get_submodule(name).float().requires_grad_(True)
        if self.dtype != torch.float32:
            self._prepare_for_autocast(backbone.model)
        if gradient_checkpointing:
            backbone.model.activation_checkpointing_enable({"use_reentrant": False})
            # It makes all embeddings ask for a gradient, which would run back through the frozen vision tower. Only
            # reentrant checkpointing needs that (peft#2880).
            backbone.model.disable_input_require_grads()
        self.score_heads = nn.ModuleDict()
        for heads in self.heads_of_adapter.values():
            for head in heads:
                std = COMPARED_START_STD if HEADS[head].is_compared else 1.0 / math.sqrt(backbone.hidden_size + 1)
                score_head = ScoreHead(backbone.hidden_size, pooling, std, num_thresholds_of(head))
                self.score_heads[head] = score_head.to(backbone.model.device)

    def forward(self, inputs: Mapping[str, Tensor], with_thresholds: bool = False) -> dict[str, Tensor]:
        """Scores the N videos of `models.inputs.build_inputs`; threads that call it at once take turns.

        Args:
            with_thresholds: whether the thresholds of heads come along, where they have some, as training needs them:
                where weights are divided among ranks, they are whole in here alone.

        Returns:
            head name -> float32 scores (N,); and with thresholds, `THRESHOLDS` + name of such a head -> (K - 1,).
        """
        with self._pass:  # which adapter is in use is a state of the backbone, shared by all threads
            scores = self._run_adapters(inputs)
        if with_thresholds:
            scores |= {THRESHOLDS + head: thresholds for head, thresholds in self.thresholds().items()}
        return scores

    def _run_adapters(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        scores = {}
        device_type = inputs["input_ids"].device.type
        # Once for all adapters, which are in the language model. Where weights are all of one type, autocast would only
        # widen the tower's layer norms on CUDA.
        with self._autocast(device_type, "projector" in self.trained_parts):
            inputs = self.family.run_vision(self._bare_backbone, inputs)
        for adapter, heads in self.heads_of_adapter.items():
            if len(self.heads_of_adapter) > 1 and self.lora.rank:
                self.backbone.set_adapter(adapter)  # type: ignore[operator]
            with self._autocast(device_type, bool(self.lora.rank or self.trained_parts)):
                # Rows are padded at their end and every token sees only what is before it: a mask would change no
                # attended state, but take a slower kernel (sdpa) or wait for the device in each layer (FlashAttention).
                hidden_states = self.backbone(
                    **{**inputs, "attention_mask": None}, use_cache=False
                ).last_hidden_state  # size = (N, L, E)
            for head in heads:
                scores[head] = self.score_heads[head](hidden_states, inputs["attention_mask"])  # size = (N,)
        return scores

    def thresholds(self) -> dict[str, Tensor]:
        """The scores from which on each higher level is the likelier: head with levels -> (K - 1,), rising from 0."""
        found = {head: self.score_heads[head].thresholds for head in HEADS if head in self.score_heads}
        return {head: thresholds() for head, thresholds in found.items() if thresholds is not None}  # type: ignore[operator]

    @property
    def peft_model(self) -> PeftModel | None:
        """The backbone with its adapters; None where there are none."""
        return self.backbone if isinstance(self.backbone, PeftModel) else None

    def trained(self) -> dict[str, dict[str, nn.Parameter]]:
        """What is trained, by part: head_reward, head_cost, adapter, projector, language_model, where there is one.

        Returns:
            part -> name, as in `named_parameters` -> parameter, all float32.
        """
        order = (*(f"head_{head}" for head in HEADS), "adapter", *get_args(TrainedPart))
        parts: dict[str, dict[str, nn.Parameter]] = {part: {} for part in order}
        for name, parameter in self.named_parameters():
            if (part := self._part_of(name)) is not None:
                parts[part][name] = parameter
        return {part: parameters for part, parameters in parts.items() if parameters}

    @property
    def _bare_backbone(self) -> PreTrainedModel:
        return self.backbone if self.peft_model is None else self.peft_model.get_base_model()

    def _autocast(self, device_type: str, has_float32_parts: bool) -> AbstractContextManager[None]:
        """Float32 parts among frozen weights of less compute in the weights' type, in training as in scoring."""
        is_needed = has_float32_parts and self.dtype != torch.float32
        dtype = self.dtype if is_needed else None
        # Every weight is used once: a cache would only hold copies of all of them to the end of the pass.
        return torch.autocast(device_type, dtype=dtype, enabled=is_needed, cache_enabled=False)

    def _prepare_for_autocast(self, model: PreTrainedModel) -> None:
        for module in model.modules():
            if isinstance(module, LoraLayer):
                # Else every adapter keeps a copy of its input for the backward pass, in place of sharing one.
                module.cast_input_dtype_enabled = False
        if "language_model" in self.trained_parts:
            # Else the states between the layers are of the weights' type, twice as large as those of a frozen model.
            model.get_input_embeddings().register_forward_hook(lambda _, inputs, states: states.to(self.dtype))

    def _part_of(self, name: str) -> str | None:
        if name.startswith("score_heads."):
            return f"head_{name.split('.')[1]}"
        if ".lora_" in name:
            return "adapter"
        plain = plain_name(name)
        for part in self.trained_parts:
            if any(plain.startswith(f"{module}.") for module in part_modules(self.family, part)):
                return part
        return None


def split_thresholds(scores: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Scores and thresholds by head, from what a model returns `with_thresholds`."""
    thresholds = {name.removeprefix(THRESHOLDS): one for name, one in scores.items() if name.startswith(THRESHOLDS)}
    return {name: one for name, one in scores.items() if not name.startswith(THRESHOLDS)}, thresholds


def part_modules(family: Family | type[Family], part: TrainedPart) -> tuple[str, ...]:
    """The names, inside the backbone, of the modules that make up a part of it."""
    return {"projector": family.projector, "language_model": (family.language_model,)}[part]


def plain_name(name: str) -> str:
    """A backbone parameter's name in the backbone itself, from its name in a score model with or without adapters."""
    return name.removeprefix("backbone.").removeprefix("base_model.model.")


class ScoreHead(nn.Module):
    """A linear map of one pooled state, in float32 whatever the backbone's type.

    bfloat16 scores of close videos become exact ties.

    Args:
        start_std: of its weights at the start.
        num_thresholds: of a head of several levels, between them; 0 for any other.
    """

    def __init__(self, hidden_size: int, pooling: Pooling, start_std: float, num_thresholds: int = 0) -> None:
        super().__init__()
        linear = nn.Linear(hidden_size, 1, dtype=torch.float32)
        nn.init.normal_(linear.weight, std=start_std)
        self.weight, self.bias = linear.weight, nn.Parameter(torch.zeros(1))
        self.query = nn.Parameter(torch.zeros(hidden_size)) if pooling == "query" else None
        self.thresholds = Thresholds(num_thresholds) if num_thresholds else None

    def forward(self, hidden_states: Tensor, attention_mask: Tensor) -> Tensor:
        """Scores (N,) from token states (N, L, E) and their mask (N, L)."""
        if self.query is None:
            states = last_attended(hidden_states, attention_mask).float()
        else:
            states = attend(hidden_states, attention_mask, self.query)
        # No matrix product: TensorFloat-32, where a user allows it, would round both sides to 10 bits.
        return (states * self.weight).sum(-1) + self.bias


class Thresholds(nn.Module):
    """Where the levels of a head part, on the scale of its score.

    The first threshold is 0, for the score has a bias; the steps from one to the next are exponentials, so that they
    rise whatever is learned. They begin at 2, where a level in the middle can be the likeliest.
    """

    def __init__(self, num_thresholds: int) -> None:
        super().__init__()
        self.log_steps = nn.Parameter(torch.full((num_thresholds - 1,), math.log(2.0), dtype=torch.float32))

    def forward(self) -> Tensor:
        """Thresholds (num_thresholds,)."""
        return torch.cat([self.log_steps.new_zeros(1), self.log_steps.exp().cumsum(0)])


def _check_target_modules(backbone: Backbone, lora: LoraConfig) -> None:
    """PEFT leaves a name aside that it does not find, as long as it finds another."""
    language_model = backbone.model.get_submodule(backbone.family.language_model)
    there = {name.split(".")[-1] for name, module in language_model.named_modules() if isinstance(module, nn.Linear)}
    unknown = sorted(set(lora.target_modules) - there)
    if unknown or not lora.target_modules:
        raise ConfigError(
            f"model.lora.target_modules: expected one or more of {', '.join(sorted(there))}, the linear layers in the "
            f"language model of {backbone.config.path}, got {', '.join(unknown) or 'none'}; correct it"
        )


def _peft_config(lora: LoraConfig, language_model: str) -> PeftLoraConfig:
    # By full name: "all-linear" would also reach the vision tower.
    modules = "|".join(lora.target_modules)
    return PeftLoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=rf"(?:.*\.)?{language_model}\..*\.(?:{modules})",
    )
