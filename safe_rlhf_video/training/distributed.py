"""Ranks: starting and ending the process group, sums over it, and errors that all of them share."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
from torch import Tensor

from safe_rlhf_video.errors import ConfigError, SafeRLHFVideoError

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """This process's place among all."""

    rank: int
    world_size: int
    device: torch.device
    # Flags go over the CPU: read back from an accelerator, they would wait for all that it still has to do.
    control: torch.distributed.ProcessGroup | None = None

    @property
    def is_first(self) -> bool:
        return self.rank == 0


def start() -> Ranks:
    """Join the process group; a plain `python script.py` becomes a group of one."""
    import deepspeed
    from deepspeed import comm

    defaults = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
    for name, value in defaults.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("MASTER_PORT", str(_free_port()))
    # Its CPU shared-memory communication is compiled at first use (g++, half a minute, and a lock file that hangs the
    # next start if it is killed meanwhile); gloo needs nothing.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    local_rank = int(os.environ["LOCAL_RANK"])
    has_cuda = torch.cuda.is_available()
    if has_cuda:
        torch.cuda.set_device(local_rank)
        torch.backends.cuda.matmul.allow_tf32 = True
    else:
        # Ranks that all take all cores wait for each other most of the time.
        local_ranks = int(os.environ.get("LOCAL_SIZE", os.environ["WORLD_SIZE"]))
        torch.set_num_threads(max(1, torch.get_num_threads() // local_ranks))
    try:
        deepspeed.init_distributed(dist_backend="nccl" if has_cuda else "gloo", verbose=False)
    except torch.distributed.DistNetworkError as error:
        port = os.environ["MASTER_PORT"]
        raise ConfigError(
            f"the ranks cannot meet at port {port} ({_first_line(error)}); if another run holds it, start this one "
            f"with deepspeed --master_port {int(port) + 1}"
        ) from error
    device = torch.device("cuda", local_rank) if has_cuda else torch.device("cpu")
    control = torch.distributed.new_group(backend="gloo") if has_cuda else None
    return Ranks(comm.get_rank(), comm.get_world_size(), device, control)


def stop() -> None:
    """Leave the process group; without it some backends abort at exit."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def barrier() -> None:
    """Wait for all ranks."""
    torch.distributed.barrier()


@contextmanager
def together(ranks: Ranks) -> Iterator[None]:
    """Run a part in which a rank may fail alone, and wait for all; one rank's error is then raised on every rank.

    Without it the others would wait in the next collective for a rank that is gone, and end with an error of their own
    that hides the cause. The part must not contain a collective.
    """
    mine: SafeRLHFVideoError | None = None
    try:
        yield
    except SafeRLHFVideoError as error:
        mine = error
    if not any_of(ranks, mine is not None):
        return
    errors: list[SafeRLHFVideoError | None] = [None] * ranks.world_size
    torch.distributed.all_gather_object(errors, mine, group=ranks.control)
    raise next(error for error in errors if error is not None)


def of_first(ranks: Ranks, value: T | None) -> T:
    """The first rank's value, on every rank."""
    values = [value]
    torch.distributed.broadcast_object_list(values, src=0, group=ranks.control)
    return cast(T, values[0])


def any_of(ranks: Ranks, flag: bool) -> bool:
    """Whether the flag is set on any rank."""
    flags = torch.tensor(float(flag))
    torch.distributed.all_reduce(flags, group=ranks.control)
    return bool(flags.item())


def check_same(ranks: Ranks, fingerprint: str) -> None:
    """Raise ConfigError on every rank unless all of them have the same data and step: they would plan other steps."""
    fingerprints: list[str | None] = [None] * ranks.world_size
    torch.distributed.all_gather_object(fingerprints, fingerprint)
    if others := [rank for rank, found in enumerate(fingerprints) if found != fingerprints[0]]:
        raise ConfigError(
            f"rank {others[0]} has other data than rank 0 (comparisons, clips, or those in its store's quarantine) or "
            "finds other checkpoints in out; give all nodes the same files, and out on a file system that they share"
        )


def sum_over_ranks(values: Mapping[str, Tensor], ranks: Ranks) -> dict[str, float]:
    """Add up single numbers by name, with the same names in any order on every rank; in float64."""
    names = sorted(values)
    tensor = torch.stack([values[name].to(ranks.device, torch.float64) for name in names])
    torch.distributed.all_reduce(tensor)
    return dict(zip(names, tensor.tolist(), strict=True))


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
