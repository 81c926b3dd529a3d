"""Builds the answer to OpenRLHF and align-anything, whose trainers ask a server for rewards.

| trainer | posts | reads |
|---|---|---|
| OpenRLHF | `query`, `prompts`, `labels` | `rewards`; newer versions `scores` and `extra_logs` too |
| align-anything | `prompts`, `responses` (`golden_responses`) | `rewards` |

Sources: OpenRLHF/OpenRLHF, openrlhf/utils/remote_rm_utils.py and openrlhf/trainer/ppo_utils/experience_maker.py;
PKU-Alignment/align-anything, align_anything/models/remote_rm/remote_rm_client.py and reward_server.py.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from safe_rlhf_video.errors import CheckpointError
from safe_rlhf_video.scoring.decisions import TradeOff, deciding_scores, name_decider, sigmoid


def build_answer(scores: Mapping[str, Sequence[float]], trade_off: TradeOff | None) -> dict[str, Any]:
    """Builds the answer that both trainers read, with reward and cost beside the combined score.

    Args:
        scores: head -> (N,), of a reward, a cost, or both; in the order of the request.
        trade_off: lambda and the cost limit; None where the reward or the cost is missing.

    Returns:
        `rewards`, which train: the Lagrangian scores, or without a cost the reward, or without a reward the cost with
        its sign turned. `scores`, their logistic function: OpenRLHF filters prompts by scores between 0 and 1.
        `extra_logs`, which OpenRLHF logs: `reward_head`, `cost_head` and `unsafe`, 1 where the cost is above 0. (A log
        named reward or score would replace OpenRLHF's own.) `decided_by` says which model is missing; trainers pass
        over it.

    Raises:
        ConfigError, CheckpointError: as `TradeOff.combine`.
    """
    table = {head: np.asarray(scores[head], dtype=np.float64) for head in ("reward", "cost") if head in scores}
    if trade_off is not None:
        combined = trade_off.combine(table["reward"], table["cost"])
    else:
        alone = deciding_scores(scores, None)
        if alone is None or not np.isfinite(alone).all():
            raise CheckpointError("a reward or cost is missing or not finite: give another model")
        combined = alone
    logs = {f"{head}_head": values.tolist() for head, values in table.items()}
    if "cost" in table:
        logs["unsafe"] = (table["cost"] > 0).astype(np.float64).tolist()
    return {
        "rewards": combined.tolist(),
        "scores": [sigmoid(value) for value in combined.tolist()],
        "extra_logs": logs,
        "decided_by": name_decider(table),
    }
