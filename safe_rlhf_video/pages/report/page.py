"""An evaluation as one HTML file that needs nothing else; the same input gives the same bytes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from safe_rlhf_video.errors import VideoDecodeError
from safe_rlhf_video.heads import DIMENSION_OF_HEAD, LABEL_HEADS
from safe_rlhf_video.pages.dashboard.page import lines_of
from safe_rlhf_video.pages.dashboard.plots import draw
from safe_rlhf_video.pages.dashboard.runs import RunMetrics
from safe_rlhf_video.pages.dashboard.spec import SECTIONS
from safe_rlhf_video.pages.document import escape, make_document
from safe_rlhf_video.pages.report import gallery, plots
from safe_rlhf_video.pages.report.gallery import Choice, draw_gallery
from safe_rlhf_video.pages.report.harms import show_harms
from safe_rlhf_video.pages.report.judgements import show_accuracy, show_calibration, show_scores
from safe_rlhf_video.pages.report.parts import show_comparison, show_parts
from safe_rlhf_video.pages.report.sources import Evaluated
from safe_rlhf_video.pages.report.summary import show_head
from safe_rlhf_video.pages.report.wording import count, grid

# Nothing is loaded from anywhere, and no script runs, whatever the data hold.
_POLICY = (
    "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
    "img-src data:; base-uri 'none'; form-action 'none'\">"
)
_LEARNING = ("eval/comparison_loss", "eval/accuracy", "train/comparison_loss", "train/accuracy",
             "eval/sign_loss", "eval/sign_accuracy", "eval/harm_loss/<label>")  # fmt: skip

_STYLE = """
body { max-width: 74rem; padding: 1.2rem; }
h1 { font-size: 1.7rem; }
h2 { font-size: 1.3rem; margin: 2.6rem 0 .4rem; padding-top: .8rem; border-top: 1px solid var(--line); }
h2 + p { max-width: 56rem; margin-bottom: .9rem; }
h3 { margin-top: .2rem; }
.pairs + h3, .scroll + h3 { margin-top: 1.4rem; }
.facts { list-style: none; padding: 0; margin: 1rem 0; }
.facts li { padding: .3rem 0 .3rem .8rem; border-left: 3px solid var(--line); margin: .3rem 0; max-width: 52rem; }
.facts .look { border-color: var(--c1); }
table { font-size: .85rem; }
td:not(:last-child), th:not(:last-child) { padding-right: 1.2rem; }
td:not(:first-child) { white-space: nowrap; }
.scroll + .panels, .dim + .panels { margin-top: 1rem; }
.dim + h3 { margin-top: 1.4rem; }
td, th { font-variant-numeric: tabular-nums; vertical-align: top; }
.reason { align-self: start; }
nav { display: flex; flex-wrap: wrap; gap: .2rem 1rem; font-size: .9rem; }
@media (max-width: 40rem) { body { padding: .8rem; } .wide td:nth-child(n) { gap: 1rem; padding-right: 0; }
  .wide td { text-align: right; white-space: normal; }
  .wide td:first-child { text-align: left; } }
@media print { nav { display: none; } body { max-width: none; font-size: 11pt; }
  .panels, .pairs { grid-template-columns: 1fr 1fr; } }
"""


def make_report(
    evaluated: Evaluated,
    runs: Sequence[RunMetrics],
    choices: Sequence[Choice],
    pictures: Mapping[str, str | VideoDecodeError],
) -> str:
    """The page of an evaluation; texts of data are untrusted and are escaped.

    Args:
        runs: as `RunMetrics.refresh` read them; may be none.
        choices: the pairs of the gallery.
        pictures: name of each of their clips -> `data:` URI, or why there is none.
    """
    sections = {
        "Accuracy": show_accuracy(evaluated),
        "Calibration": show_calibration(evaluated),
        "Scores": show_scores(evaluated),
        "Harm labels": show_harms(evaluated),
        "Parts of the data": show_parts(evaluated),
        "Two models": show_comparison(evaluated.result),
        "Learning curves": _show_learning(runs),
        "Pairs": _show_pairs(choices, evaluated, pictures),
    }
    shown = {title: content for title, content in sections.items() if content}
    links = "".join(f'<a href="#{_anchor(title)}">{title}</a>' for title in shown)
    body = "".join(f'<h2 id="{_anchor(title)}">{title}</h2>{content}' for title, content in shown.items())
    heads = [head.replace("_", " ") for head in evaluated.heads if head in DIMENSION_OF_HEAD]
    if any(head in LABEL_HEADS for head in evaluated.heads):
        heads.append("harm labels")
    title = f"Evaluation of {' and '.join([', '.join(heads[:-1]), heads[-1]] if len(heads) > 1 else heads)}"
    style = plots.STYLE + gallery.STYLE + _STYLE
    return make_document(title, show_head(evaluated, pictures) + f"<nav>{links}</nav>" + body, style, _POLICY)


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


def _show_learning(runs: Sequence[RunMetrics]) -> str:
    if not runs:
        return ""
    every = [panel for section in SECTIONS for panel in section.panels]
    chosen = [panel for name in _LEARNING for panel in every if panel.kind == "line" and panel.metrics[0] == name]
    drawn = [draw(panel, lines) for panel in chosen if (lines := lines_of(panel, runs))]
    about = "; ".join(f"{run.name}: {count(run.last_step, 'step')}" for run in runs)
    lead = f"<p>{escape(about)}. At a loss of ln 2 a model tells no pair apart; that is where a run begins.</p>"
    return lead + grid(drawn)


def _show_pairs(choices: Sequence[Choice], evaluated: Evaluated, pictures: Mapping[str, str | VideoDecodeError]) -> str:
    if not choices:
        return ""
    unread = sum(isinstance(picture, VideoDecodeError) for picture in pictures.values())
    told = f" {unread:,} of {len(pictures):,} clips cannot be read." if unread else ""
    frames = "Frames run from a clip's first to its last. " if pictures else ""
    lead = (
        f"<p>{frames}Disputed are pairs whose labels disagree, and then those that the model finds hardest to tell "
        f"apart; a prompt gives one pair a row.{told}</p>"
    )
    return lead + draw_gallery(choices, evaluated, pictures)
