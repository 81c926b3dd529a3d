"""From a backbone's token states to one state a video."""

from torch import Tensor


def last_attended(hidden_states: Tensor, attention_mask: Tensor) -> Tensor:
    """The state of the last attended token, by the mask alone: neither the pad token nor its side matters.

    Args:
        hidden_states: (N, L, E).
        attention_mask: (N, L), 1 where a token counts; every row has at least one.

    Returns:
        (N, E).
    """
    # argmax finds the first maximum; on the reversed mask that is the last attended place.
    last = attention_mask.shape[1] - 1 - attention_mask.flip(1).argmax(1)
    return hidden_states.gather(1, last.view(-1, 1, 1).expand(-1, 1, hidden_states.shape[-1])).squeeze(1)
