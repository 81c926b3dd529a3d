"""DeepSpeed: building the engine, and its trainable state in a form that fits any number of ranks.

DeepSpeed's own checkpoints of ZeRO 1 and 2 cannot be loaded at another world size. What is trained here (adapters,
heads and their Adam moments) is small, so it is gathered, saved whole, and given back in whatever shape the ranks have
then.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import deepspeed
import torch
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from deepspeed.utils import logger as deepspeed_logger
from deepspeed.utils import safe_get_full_grad
from torch import Tensor, nn

from safe_rlhf_video.errors import ConfigError
from safe_rlhf_video.models.score_model import ScoreModel
from safe_rlhf_video.training.config import TrainConfig

MOMENTS = ("exp_avg", "exp_avg_sq")


def build_deepspeed_config(config: TrainConfig) -> dict[str, Any]:
    """DeepSpeed's configuration from ours, with the user's further keys laid over it."""
    base = {
        # Batches are planned by prompts, outside DeepSpeed; it only needs the number of micro-batches.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": config.optimization.accumulation,
        "gradient_clipping": config.optimization.gradient_clipping,
        "zero_optimization": {"stage": config.engine.zero_stage},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**31,
    }
    overrides = dict(config.engine.deepspeed)
    zero = {**base["zero_optimization"], **overrides.pop("zero_optimization", {})}  # type: ignore[dict-item]
    if zero["stage"] != config.engine.zero_stage:
        raise ConfigError("engine.deepspeed.zero_optimization.stage: set engine.zero_stage instead")
    # By prefix: DeepSpeed still takes the deprecated names (cpu_offload and others) for the new ones.
    if offloading := [name for name in zero if name.startswith(("offload_", "cpu_offload"))]:
        raise ConfigError(
            f"engine.deepspeed.zero_optimization.{offloading[0]}: offloading is not supported, the trained state is "
            "small; leave it out"
        )
    try:
        DeepSpeedZeroConfig(**zero)
    except ValueError as error:
        reason = " ".join(str(error).split("For further information")[0].split())
        raise ConfigError(f"engine.deepspeed.zero_optimization: {reason}; correct this section") from error
    return {**base, **overrides, "zero_optimization": zero}


def build_engine(model: ScoreModel, config: TrainConfig) -> Any:
    """Wrap a model whose trainable parameters are already those of rank 0's choice."""
    deepspeed_logger.setLevel("WARNING")
    rates = config.optimization
    heads = list(model.score_heads.parameters())
    head_ids = {id(parameter) for parameter in heads}
    adapters = [p for p in model.parameters() if p.requires_grad and id(p) not in head_ids]
    groups = [{"params": heads, "lr": rates.head_learning_rate}]
    if adapters:
        groups.append({"params": adapters, "lr": rates.learning_rate})
    # A client optimizer: DeepSpeed's own Adam is compiled at first use, for minutes.
    optimizer = torch.optim.AdamW(groups, betas=rates.betas, weight_decay=rates.weight_decay)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=build_deepspeed_config(config))
    return engine


def learning_rate_factor(step: int, total_steps: int, warmup_fraction: float, final_fraction: float) -> float:
    """The share of the peak rate at a step counted from 0: linear warm-up, then a cosine (arXiv 1608.03983)."""
    warmup = math.ceil(warmup_fraction * total_steps)
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(total_steps - warmup, 1)
    return final_fraction + (1.0 - final_fraction) * 0.5 * (1.0 + math.cos(math.pi * progress))


def set_learning_rates(engine: Any, config: TrainConfig, factor: float) -> None:
    """Set the rates of this step; they depend on the step alone, so a resume has nothing to restore."""
    peaks = (config.optimization.head_learning_rate, config.optimization.learning_rate)
    for group, peak in zip(engine.optimizer.param_groups, peaks, strict=False):
        group["lr"] = peak * factor


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name -> parameter of all that is trained."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def gradient_norms(model: ScoreModel) -> dict[str, float]:
    """The norm of the averaged gradient, for each head and the adapters; between backward and step, on all ranks."""
    norms: dict[str, list[Tensor]] = {}
    for name, parameter in trainable(model).items():
        gradient = safe_get_full_grad(parameter)
        group = f"head_{name.split('.')[1]}" if name.startswith("score_heads.") else "adapter"
        gradient = torch.zeros_like(parameter) if gradient is None else gradient
        norms.setdefault(group, []).append(torch.linalg.vector_norm(gradient.float()))
    # Read back once a group: every `item` stalls an accelerator.
    return {group: torch.linalg.vector_norm(torch.stack(parts)).item() for group, parts in norms.items()}


def gather_moments(engine: Any) -> dict[str, Tensor]:
    """Adam's moments of every trained parameter, whole, as `<moment>.<parameter>`; called on all ranks."""
    names = {parameter: name for name, parameter in trainable(engine.module).items()}
    tensors = {
        f"{moment}.{name}": torch.zeros_like(parameter, dtype=torch.float32, memory_format=torch.contiguous_format)
        for parameter, name in names.items()
        for moment in MOMENTS
    }
    for holder, pieces in _state_pieces(engine):
        state = _torch_optimizer(engine).state[holder]
        for parameter, place, part in pieces:
            for moment in MOMENTS:
                tensors[f"{moment}.{names[parameter]}"].view(-1)[part] = state[moment].view(-1)[place]
    if engine.zero_optimization():
        # Every element lies on one rank and is zero on the others. (DeepSpeed's own safe_get_full_optimizer_state links
        # to the state after the first parameter group's first update, and so never finds that of the second group.)
        for tensor in tensors.values():
            torch.distributed.all_reduce(tensor)
    return {name: tensor.cpu() for name, tensor in tensors.items()}


def restore_moments(engine: Any, tensors: dict[str, Tensor], step: int) -> None:
    """Give the optimizer the state it had after `step` updates, divided among the ranks there are now."""
    names = {parameter: name for name, parameter in trainable(engine.module).items()}
    for holder, pieces in _state_pieces(engine):
        state: dict[str, Tensor] = {"step": torch.tensor(float(step))}
        for moment in MOMENTS:
            state[moment] = torch.zeros_like(holder)
            for parameter, place, part in pieces:
                value = tensors[f"{moment}.{names[parameter]}"].flatten()[part]
                state[moment].view(-1)[place] = value.to(holder.device)
        _torch_optimizer(engine).state[holder] = state


def _state_pieces(engine: Any) -> Iterator[tuple[Tensor, list[tuple[nn.Parameter, slice, slice]]]]:
    """(what the torch optimizer updates, [(parameter, its place there, the part of it that lies there)])."""
    if not engine.zero_optimization():
        for parameter in trainable(engine.module).values():
            everything = slice(0, parameter.numel())
            yield parameter, [(parameter, everything, everything)]
        return
    zero = engine.optimizer
    for parameters, flat in zip(zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True):
        pieces = []
        for parameter in parameters:
            mapping = parameter._hp_mapping
            if mapping is not None:  # None: this parameter lies on other ranks
                here, whole = mapping.hp_fragment_address, mapping.lp_fragment_address
                pieces.append(
                    (
                        parameter,
                        slice(here.start, here.start + here.numel),
                        slice(whole.start, whole.start + whole.numel),
                    )
                )
        yield flat, pieces


def _torch_optimizer(engine: Any) -> torch.optim.Optimizer:
    return engine.optimizer.optimizer if engine.zero_optimization() else engine.optimizer
