"""Which side of a comparison a peer's trainer should score higher."""

from safe_rlhf_video.data.records import PairSample
from safe_rlhf_video.heads import DIMENSION_OF_HEAD


def chosen_first(pair: PairSample, head: str) -> tuple[str, str] | None:
    """The names of the chosen side and the other, of a cost the less safe one first; None without a strict label."""
    label = pair.preferences[DIMENSION_OF_HEAD[head]]
    if label not in (0, 1):
        return None
    sides = (pair.video_0.name, pair.video_1.name)
    return sides if (label == 0) == (head == "reward") else sides[::-1]
