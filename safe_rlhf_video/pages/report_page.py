"""Makes the page of an evaluation; the same input gives the same bytes."""

from __future__ import annotations

from collections.abc import Sequence

from safe_rlhf_video.errors import VideoDecodeError
from safe_rlhf_video.heads import DIMENSION_OF_HEAD, LABEL_HEADS
from safe_rlhf_video.pages.document import Panels, render
from safe_rlhf_video.pages.gallery import GalleryRow, Pictures, make_cards
from safe_rlhf_video.pages.report_data import ReportData
from safe_rlhf_video.pages.report_tables import report_tables
from safe_rlhf_video.pages.run_metrics import RunMetrics
from safe_rlhf_video.wording import words


def make_report_page(
    data: ReportData, plots: Panels, runs: Sequence[RunMetrics], rows: Sequence[GalleryRow], pictures: Pictures
) -> str:
    """The whole page.

    Args:
        plots: as of `report_plots`.
        runs: those of the learning curves; may be none.
        rows: the pairs of the gallery.
        pictures: of each of their clips.
    """
    heads = [words(head) for head in data.heads if head in DIMENSION_OF_HEAD]
    if any(head in LABEL_HEADS for head in data.heads):
        heads.append("harm labels")
    title = f"Evaluation of {' and '.join([', '.join(heads[:-1]), heads[-1]] if len(heads) > 1 else heads)}"
    gallery = {row.title: make_cards(row, data, pictures) for row in rows}
    return render("report.html", title=title, data=data, plots=plots, tables=report_tables(data), runs=runs,
                  gallery=gallery, num_pictures=len(pictures), num_unread=num_unread(pictures))  # fmt: skip


def num_unread(pictures: Pictures) -> int:
    """How many clips cannot be read."""
    return sum(isinstance(picture, VideoDecodeError) for picture in pictures.values())
