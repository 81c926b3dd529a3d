"""Chooses the device and the share of the work of this process."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from safe_rlhf_video.errors import ConfigError

if TYPE_CHECKING:  # slow to import; rows are checked before it is needed
    import torch


@dataclass(frozen=True)
class Shard:
    """The share of this process: every `world_size`-th request, from number `rank` on.

    Attributes:
        local_rank, local_size: its place among the processes of this machine, and their number.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_size: int = 1


def read_shard(environment: Mapping[str, str] = os.environ) -> Shard:
    """Reads the share that a launcher (deepspeed, torchrun, or any that sets RANK and WORLD_SIZE) gave this process.

    Raises:
        ConfigError: the variables contradict each other.
    """
    if "RANK" not in environment and "WORLD_SIZE" not in environment:
        return Shard()
    try:
        rank, world_size = int(environment["RANK"]), int(environment["WORLD_SIZE"])
        local_rank = int(environment.get("LOCAL_RANK", "0"))
        local_size = int(environment.get("LOCAL_SIZE") or environment.get("LOCAL_WORLD_SIZE") or world_size)
        if not (0 <= rank < world_size and 0 <= local_rank < local_size):
            raise ValueError
    except (KeyError, ValueError) as error:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        found = ", ".join(f"{name}={environment.get(name, '')}" for name in names)
        raise ConfigError(
            f"the environment has {found}, which is no rank in a group of processes; set all three or none"
        ) from error
    return Shard(rank, world_size, local_rank, local_size)


def choose_device(shard: Shard) -> str:
    """Returns the GPU of this process and makes it the current one; without GPUs the CPU, with a share of the threads.

    Raises:
        ConfigError: this machine has fewer GPUs than processes.
    """
    import torch

    if not torch.cuda.is_available():
        # Ranks that all use all cores wait for each other most of the time.
        torch.set_num_threads(max(1, torch.get_num_threads() // shard.local_size))
        return "cpu"
    if shard.local_rank >= torch.cuda.device_count():
        raise ConfigError(
            f"rank {shard.rank} is process number {shard.local_rank} of this machine, which has "
            f"{torch.cuda.device_count()} GPUs; start as many processes as there are GPUs"
        )
    torch.cuda.set_device(shard.local_rank)
    return f"cuda:{shard.local_rank}"


def own_device() -> str:
    """Returns the device of this rank of a trainer, for `Scorer.from_pretrained`.

    A trainer sets the current device when it starts; a model that is loaded before that would be on the first one.
    """
    import torch

    rank = os.environ.get("LOCAL_RANK", "")
    return f"cuda:{rank}" if rank.isdecimal() and int(rank) < torch.cuda.device_count() else "auto"


def resolve_device(name: str) -> torch.device:
    """Returns a torch device by its name, or for "auto" CUDA if there is any.

    Raises:
        ConfigError: there is no such device.
    """
    import torch

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device: {name!r} cannot be used here ({reason}); give 'auto', 'cpu' or 'cuda'") from error
    return device
