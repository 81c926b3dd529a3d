"""Builds the answer to OpenRLHF and align-anything, whose trainers ask a server for rewards.

| trainer | posts | reads |
|---|---|---|
| OpenRLHF | `query`, `prompts`, `labels` | `rewards`; newer versions `scores` and `extra_logs` too |
| align-anything | `prompts`, `responses` (`golden_responses`) | `rewards` |

Sources: OpenRLHF/OpenRLHF, openrlhf/utils/remote_rm_utils.py and openrlhf/trainer/ppo_utils/experience_maker.py;
PKU-Alignment/align-anything, align_anything/models/remote_rm/remote_rm_client.py and reward_server.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from safe_rlhf_video.scoring.decisions import TradeOff, sigmoid


def build_answer(rewards: Sequence[float], costs: Sequence[float], trade_off: TradeOff) -> dict[str, Any]:
    """Builds the answer that both trainers read, with reward and cost beside the combined score.

    Args:
        rewards, costs: (N,) scores of the two heads, in the order of the request.
        trade_off: lambda and the cost limit.

    Returns:
        `rewards`, which train: the Lagrangian scores. `scores`, their logistic function: OpenRLHF filters prompts by
        scores between 0 and 1. `extra_logs`, which OpenRLHF logs: `reward_head`, `cost_head` and `unsafe`, 1 where the
        cost is above 0. (A log named reward or score would replace OpenRLHF's own.)

    Raises:
        ConfigError, CheckpointError: as `TradeOff.combine`.
    """
    reward, cost = np.asarray(rewards, dtype=np.float64), np.asarray(costs, dtype=np.float64)
    combined = trade_off.combine(reward, cost)
    return {
        "rewards": combined.tolist(),
        "scores": [sigmoid(value) for value in combined.tolist()],
        "extra_logs": {
            "reward_head": reward.tolist(),
            "cost_head": cost.tolist(),
            "unsafe": (cost > 0).astype(np.float64).tolist(),
        },
    }
