"""DeepSpeed: building the engine, and its trainable state in a form that fits any number of ranks.

DeepSpeed's own checkpoints of ZeRO 1 and 2 cannot be loaded at another world size. What is trained here (adapters and
heads, or a language model, with their Adam moments and averages) is gathered tensor by tensor, saved whole by one rank,
and given back in whatever shape the ranks have then.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import deepspeed
import torch
from deepspeed.runtime.config import DeepSpeedConfig
from deepspeed.runtime.zero.utils import ZERO_SUPPORTED_OPTIMIZERS
from deepspeed.utils import logger as deepspeed_logger
from torch import Tensor, nn
from torch.optim import AdamW

from safe_rlhf_video.errors import ConfigError
from safe_rlhf_video.models.score_model import ScoreModel
from safe_rlhf_video.training.config import BUCKET_SIZE, OptimizationConfig, TrainConfig
from safe_rlhf_video.training.distributed import Ranks

MOMENTS = ("exp_avg", "exp_avg_sq")
AVERAGE = "average"  # a third entry of the optimiser's state, where weights are averaged
MOST_AVERAGED = 64  # steps in the window of an average, before some are passed over
WEIGHT = "weight"  # of a checkpoint whose model has averages: the weights that training goes on from


class AveragingAdamW(AdamW):
    """AdamW that keeps an average of each weight in its state, divided among ranks as its moments are.

    After t steps a new weight counts for 1 / (1 - s + s t): polynomial-decay averaging with eta = 1/s - 1 (Shamir and
    Zhang 2013, arXiv 1212.1824), which needs no number of steps in advance. Two thirds of an average are of the last
    s t steps. Once those are more than 128, only every second step is averaged, then every fourth, and so on, each for
    all of them: else a float32 average would no longer follow a weight that moves slowly.
    """

    def __init__(self, groups: list[dict[str, Any]], share: float, **settings: Any) -> None:
        super().__init__(groups, **settings)
        self._share = share

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Takes a step of AdamW, then one of the averages."""
        loss = super().step(closure)
        for group in self.param_groups:
            known = [parameter for parameter in group["params"] if self.state.get(parameter)]  # a gradient came before
            if not known:
                continue
            newest = self._weight_of_newest(self.state[known[0]]["step"])  # the same for all of them
            for parameter in known:
                state = self.state[parameter]
                if AVERAGE not in state:
                    state[AVERAGE] = parameter.detach().clone()
                state[AVERAGE].lerp_(parameter, newest)
        return loss

    def _weight_of_newest(self, step: Tensor) -> Tensor:
        """In tensors, so that nothing is read back from the device."""
        every = 2.0 ** (self._share * step / MOST_AVERAGED).clamp_min(1.0).log2().floor()
        weight = (every / (1.0 - self._share + self._share * step)).clamp_max(1.0)
        return torch.where(step % every == 0, weight, 0.0)


def build_deepspeed_config(config: TrainConfig, num_trained: int = BUCKET_SIZE) -> dict[str, Any]:
    """DeepSpeed's configuration from ours, with the user's further keys laid over it.

    Args:
        num_trained: parameters; DeepSpeed allocates whole buckets, however little there is to put into them.

    Raises:
        ConfigError: DeepSpeed does not take a value of the user's section.
    """
    base = {
        # Batches are planned by prompts, outside DeepSpeed: the loop tells it which micro-batch ends a step.
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.optimization.gradient_clipping,
        "zero_optimization": {
            "stage": config.engine.zero_stage,
            "reduce_bucket_size": min(BUCKET_SIZE, num_trained),
        },
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**31,
    }
    overrides = dict(config.engine.deepspeed)
    zero = {**base["zero_optimization"], **overrides.pop("zero_optimization", {})}  # type: ignore[dict-item]
    if zero["stage"] != config.engine.zero_stage:
        raise ConfigError("engine.deepspeed.zero_optimization.stage: set engine.zero_stage instead")
    settings = {**base, **overrides, "zero_optimization": zero}
    try:
        DeepSpeedConfig(copy.deepcopy(settings))
    except (ValueError, TypeError, AssertionError) as error:
        reason = " ".join(str(error).split("For further information")[0].split())
        raise ConfigError(f"engine.deepspeed: {reason}; correct this section") from error
    return settings


def build_engine(model: ScoreModel, config: TrainConfig, device: torch.device) -> Any:
    """Wrap a model whose trainable parameters are already those of rank 0's choice; it is then in training mode."""
    deepspeed_logger.setLevel("WARNING")
    groups = [
        {"params": list(parameters.values()), "lr": peak_rate(part, config.optimization), "part": part}
        for part, parameters in model.trained().items()
    ]
    # A client optimizer: DeepSpeed's own Adam is compiled at first use, for minutes.
    rates = config.optimization
    settings: dict[str, Any] = {
        "betas": rates.betas, "weight_decay": rates.weight_decay, "fused": device.type == "cuda"
    }  # fmt: skip
    optimizer = AveragingAdamW(groups, rates.averaging, **settings) if rates.averaging else AdamW(groups, **settings)
    if AveragingAdamW not in ZERO_SUPPORTED_OPTIMIZERS:  # it steps as AdamW does; tests/test_zero.py holds the averages
        ZERO_SUPPORTED_OPTIMIZERS.append(AveragingAdamW)
    num_trained = sum(parameter.numel() for parameter in trainable(model).values())
    deepspeed_config = build_deepspeed_config(config, num_trained)
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=deepspeed_config)
    if config.engine.compile:
        engine.compile(compile_kwargs={"dynamic": True})
    engine.train()
    return engine


def peak_rate(part: str, rates: OptimizationConfig) -> float:
    """The highest learning rate of a part of the model, as `ScoreModel.trained` names them."""
    if part.startswith("head_"):
        return rates.head_learning_rate
    return {
        "adapter": rates.learning_rate,
        "projector": rates.projector_learning_rate,
        "language_model": rates.language_model_learning_rate,
    }[part]


def learning_rate_factor(step: int, total_steps: int, warmup_fraction: float, final_fraction: float) -> float:
    """The share of the peak rate at a step counted from 0: linear warm-up, then a cosine (arXiv 1608.03983)."""
    warmup = math.ceil(warmup_fraction * total_steps)
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(total_steps - warmup, 1)
    return final_fraction + (1.0 - final_fraction) * 0.5 * (1.0 + math.cos(math.pi * progress))


def set_learning_rates(engine: Any, config: TrainConfig, factor: float) -> None:
    """Set the rates of this step; they depend on the step alone, so a resume has nothing to restore."""
    for group in engine.optimizer.param_groups:
        group["lr"] = peak_rate(group["part"], config.optimization) * factor


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name -> parameter of all that is trained."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def squared_gradient_norms(
    engine: Any, parts: Mapping[str, Mapping[str, nn.Parameter]], ranks: Ranks
) -> dict[str, Tensor]:
    """Part of the model -> the square of its averaged gradient's norm, to be summed over ranks.

    Between the last backward pass of a step and the step itself. Every rank brings what lies on it.
    """
    squares = {}
    for part, parameters in parts.items():
        total = torch.zeros((), device=ranks.device)
        for parameter in parameters.values():
            gradient = _own_gradient(engine, parameter)
            if gradient is not None:
                total += gradient.float().square().sum()
        # Undivided gradients lie on every rank.
        squares[part] = total if engine.zero_optimization() else total / ranks.world_size
    return squares


def gather_weights(engine: Any) -> dict[str, Tensor]:
    """What is trained, whole, on the CPU; called on all ranks, the first one gets it, the others nothing."""
    weights = {}
    for name, parameter in trainable(engine.module).items():
        with deepspeed.zero.GatheredParameters([parameter], enabled=engine.zero_optimization_partition_weights()):
            if engine.global_rank == 0:
                weights[name] = torch.empty_like(parameter, device="cpu").copy_(parameter.detach())
    return weights


def gather_moments(engine: Any) -> dict[str, Tensor]:
    """What the optimizer keeps of every trained parameter, whole, as `<name>.<parameter>`; as `gather_weights` does."""
    return _gather_state(engine, _kept(engine))


@contextmanager
def averages_in_place(engine: Any) -> Iterator[None]:
    """Gives the model the averages of its weights meanwhile, where the optimizer keeps some."""
    if AVERAGE not in _kept(engine):
        yield
        return
    own = gather_weights(engine)
    _put_weights(engine, _gather_state(engine, (AVERAGE,)), f"{AVERAGE}.")  # not kept meanwhile
    yield
    _put_weights(engine, own)


def split_averages(
    weights: dict[str, Tensor], moments: dict[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """What a checkpoint's model has and what its training state has: averages, where there are some, are the model.

    Args:
        weights: of `gather_weights`.
        moments: of `gather_moments`.
    """
    averages = {name: moments.pop(f"{AVERAGE}.{name}") for name in weights if f"{AVERAGE}.{name}" in moments}
    if not averages:
        return weights, moments
    return averages, moments | {f"{WEIGHT}.{name}": weight for name, weight in weights.items()}


@torch.no_grad()
def restore_weights(model: ScoreModel, moments: dict[str, Tensor]) -> None:
    """`split_averages` undone: a model loaded from a checkpoint gets the weights that training goes on from."""
    for name, parameter in trainable(model).items():
        if f"{WEIGHT}.{name}" in moments:
            moments[f"{AVERAGE}.{name}"] = parameter.cpu().clone()
            parameter.copy_(moments.pop(f"{WEIGHT}.{name}"))


def _put_weights(engine: Any, weights: Mapping[str, Tensor], prefix: str = "") -> None:
    """Puts whole weights of the first rank, by prefix and name, in the place of those on all ranks."""
    divided = engine.zero_optimization_partition_weights()
    for name, parameter in trainable(engine.module).items():
        with torch.no_grad(), deepspeed.zero.GatheredParameters([parameter], modifier_rank=0, enabled=divided):
            if engine.global_rank == 0:
                parameter.copy_(weights[prefix + name])
            if not divided:
                torch.distributed.broadcast(parameter.detach(), 0)


def _gather_state(engine: Any, kept: tuple[str, ...]) -> dict[str, Tensor]:
    held = _held_pieces(engine)
    tensors = {}
    for name, parameter in trainable(engine.module).items():
        for moment in kept:
            # A tensor at a time: those of a language model do not fit on a device together.
            shape = _whole_shape(parameter)
            whole = torch.zeros(math.prod(shape), dtype=torch.float32, device=parameter.device)
            for holder, place, part in held.get(parameter, ()):
                whole[part] = _torch_optimizer(engine).state[holder][moment].view(-1)[place]
            if engine.zero_optimization():
                # Every element lies on one rank and is zero on the others. (DeepSpeed's safe_get_full_optimizer_state
                # links to the state after the first parameter group's first update, and so never finds that of others.)
                torch.distributed.all_reduce(whole)
            if engine.global_rank == 0:
                tensors[f"{moment}.{name}"] = whole.view(shape).cpu()
    return tensors


def restore_moments(engine: Any, tensors: dict[str, Tensor], step: int) -> None:
    """Give the optimizer the state it had after `step` updates, divided among the ranks there are now."""
    names = {parameter: name for name, parameter in trainable(engine.module).items()}
    for holder, pieces in _state_pieces(engine):
        fused = holder.device.type == "cuda"
        state: dict[str, Tensor] = {"step": torch.tensor(float(step), device=holder.device if fused else "cpu")}
        for moment in _kept(engine):
            state[moment] = torch.zeros_like(holder)
            for parameter, place, part in pieces:
                value = tensors[f"{moment}.{names[parameter]}"].flatten()[part]
                state[moment].view(-1)[place] = value.to(holder.device)
        _torch_optimizer(engine).state[holder] = state


def _held_pieces(engine: Any) -> dict[nn.Parameter, list[tuple[Tensor, slice, slice]]]:
    """Parameter -> where its state lies on this rank: (holder, place there, part of the parameter)."""
    held: dict[nn.Parameter, list[tuple[Tensor, slice, slice]]] = {}
    for holder, pieces in _state_pieces(engine):
        for parameter, place, part in pieces:
            held.setdefault(parameter, []).append((holder, place, part))
    return held


def _state_pieces(engine: Any) -> Iterator[tuple[Tensor, list[tuple[nn.Parameter, slice, slice]]]]:
    """(what the torch optimizer updates, [(parameter, its place there, the part of it that lies there)])."""
    zero = engine.optimizer
    if not engine.zero_optimization():
        for parameter in trainable(engine.module).values():
            everything = slice(0, parameter.numel())
            yield parameter, [(parameter, everything, everything)]
    elif engine.zero_optimization_partition_weights():
        for parameters, flat in zip(zero.fp16_groups, zero.fp32_partitioned_groups_flat, strict=True):
            pieces = []
            for parameter in parameters:
                _, offset, _ = zero.grad_position[zero.get_param_id(parameter)]
                start, stop = _own_part(engine, parameter)
                pieces.append((parameter, slice(offset, offset + stop - start), slice(start, stop)))
            yield flat, pieces
    else:
        for parameters, flat in zip(zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True):
            pieces = []
            for parameter in parameters:
                mapping = parameter._hp_mapping
                if mapping is not None:  # None: this parameter lies on other ranks
                    here, whole = mapping.hp_fragment_address, mapping.lp_fragment_address
                    place = slice(here.start, here.start + here.numel)
                    pieces.append((parameter, place, slice(whole.start, whole.start + whole.numel)))
            yield flat, pieces


def _own_gradient(engine: Any, parameter: Any) -> Tensor | None:
    """The part of a parameter's averaged gradient that lies on this rank, if any does."""
    if not engine.zero_optimization():
        return parameter.grad
    if engine.zero_optimization_partition_weights():
        start, stop = _own_part(engine, parameter)
        return engine.optimizer.get_local_fp32_grad_for_param(parameter).flatten()[: stop - start]
    mapping = parameter._hp_mapping
    return None if mapping is None else mapping.get_lp_grad_fragment(parameter._index_in_param_group)


def _own_part(engine: Any, parameter: Any) -> tuple[int, int]:
    """ZeRO 3: from where to where in a flattened parameter this rank's part goes; the last parts may be empty."""
    length = parameter.partition_numel()
    start = min(length * engine.global_rank, parameter.ds_numel)
    return start, min(start + length, parameter.ds_numel)


def _whole_shape(parameter: nn.Parameter) -> torch.Size:
    return getattr(parameter, "ds_shape", parameter.shape)


def _kept(engine: Any) -> tuple[str, ...]:
    """What the optimizer keeps of a parameter."""
    return (*MOMENTS, AVERAGE) if isinstance(_torch_optimizer(engine), AveragingAdamW) else MOMENTS


def _torch_optimizer(engine: Any) -> torch.optim.Optimizer:
    return engine.optimizer.optimizer if engine.zero_optimization() else engine.optimizer
