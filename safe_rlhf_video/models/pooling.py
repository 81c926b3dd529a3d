"""From a backbone's token states to one state a video."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def last_attended(hidden_states: Tensor, attention_mask: Tensor) -> Tensor:
    """The state of the last attended token, by the mask alone: neither the pad token nor its side matters.

    Args:
        hidden_states: (N, L, E).
        attention_mask: (N, L), 1 where a token counts; every row has at least one.

    Returns:
        (N, E).
    """
    last = last_place(attention_mask)
    return hidden_states.gather(1, last.view(-1, 1, 1).expand(-1, 1, hidden_states.shape[-1])).squeeze(1)


def last_place(attention_mask: Tensor) -> Tensor:
    """Where the last attended token of every row is: (N,) from a mask (N, L)."""
    # argmax finds the first maximum; on the reversed mask that is the last attended place.
    return attention_mask.shape[1] - 1 - attention_mask.flip(1).argmax(1)


def attend(hidden_states: Tensor, attention_mask: Tensor, query: Tensor) -> Tensor:
    """The mean of the attended tokens' states, weighted by how well each answers a learned query.

        pooled_n = sum_l softmax_l(h_nl . query / sqrt(E) + b_nl) h_nl      over the L_n tokens that the mask attends to
        b_nl = ln(max(L_n - 1, 1)) for the last of them, else 0

    A query of zeros, where training begins, gives the last token half of the weight and the others the rest. Source:
    query-attention pooling in SoliReward, which has no b.

    Args:
        hidden_states: (N, L, E).
        attention_mask: (N, L), 1 where a token counts; every row has at least one.
        query: float32 (E,).

    Returns:
        float32 (N, E).
    """
    states = hidden_states.float()
    # Sums of products here and below: TensorFloat-32 would round the factors of a matrix product to 10 bits.
    logits = (states * query).sum(-1) / math.sqrt(states.shape[-1])  # size = (N, L)
    # A plain mean is mostly of tokens that come before the prompt, and no state of a causal model knows what follows.
    others = (attention_mask.sum(1, keepdim=True) - 1).clamp(min=1).to(logits.dtype)
    logits = logits.scatter_add(1, last_place(attention_mask).view(-1, 1), others.log())
    weights = logits.masked_fill(attention_mask == 0, -math.inf).softmax(dim=1)
    # A padded state counts nothing, even where it is not finite.
    states = torch.where(attention_mask.unsqueeze(-1) == 0, 0.0, states)
    return (weights.unsqueeze(-1) * states).sum(1)
