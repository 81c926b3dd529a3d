"""The report of an evaluation: drawn figures against evaluation.json, bad input, and how it looks in a browser."""

from __future__ import annotations

import gzip
import json
import re
import runpy
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, Record, launch, read_records
from small_models import one_line, write_model

from safe_rlhf_video.data.records import HARM_LABELS
from safe_rlhf_video.errors import ConfigError, SampleError, VideoDecodeError
from safe_rlhf_video.evaluation.compare import compare
from safe_rlhf_video.evaluation.evaluate import evaluate
from safe_rlhf_video.evaluation.judgements import JudgedComparison, collect_judgements, write_judgements
from safe_rlhf_video.evaluation.labelled_clips import load_labelled_clips
from safe_rlhf_video.evaluation.results import fingerprint, read_evaluation
from safe_rlhf_video.evaluation.results import write_evaluation as write_result
from safe_rlhf_video.evaluation.table import format_table
from safe_rlhf_video.heads import HARM_HEADS, LOGIT_HEADS, SUB_HEADS
from safe_rlhf_video.pages.gallery import choose_pairs, clips_to_show, make_cards
from safe_rlhf_video.pages.report_data import ReportData, read_report_data
from safe_rlhf_video.pages.report_page import make_report_page
from safe_rlhf_video.pages.report_plots import report_plots
from safe_rlhf_video.pages.run_metrics import RunMetrics, open_runs
from safe_rlhf_video.pages.thumbnails import draw_thumbnails, find_files
from safe_rlhf_video.video.sampling import Sampling
from safe_rlhf_video.video.store_builder import ClipFile, build_store

HEADS_OF_ADAPTER = {"joint": ("reward", "cost"), "moderation": HARM_HEADS}
VOID = {"meta", "link", "img", "br"}
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Balance(HTMLParser):
    """Which tags a page has; fails where they do not nest."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@dataclass(frozen=True)
class Page:
    """A report taken apart."""

    text: str
    tags: list[tuple[str, dict[str, str | None]]]
    figures: dict[str, list[ElementTree.Element]]

    def plot(self, title: str, number: int = 0) -> ElementTree.Element:
        return self.figures[title][number]


def take_apart(text: str) -> Page:
    parser = Balance()
    parser.feed(text)
    assert not parser.open
    figures: dict[str, list[ElementTree.Element]] = {}
    for piece in re.findall(r"<figure.*?</figure>", text, re.DOTALL):
        figure = ElementTree.fromstring(piece)
        figures.setdefault(figure.findtext("h3") or "", []).append(figure)
    return Page(text, parser.tags, figures)


def said(element: ElementTree.Element) -> str:
    return " ".join(" ".join(element.itertext()).split())


def draw(
    folder: Path, runs: Sequence[RunMetrics] = (), frame_store: str | None = None, video_dir: Path | None = None
) -> tuple[Page, ReportData]:
    """What scripts/report.py draws, in process."""
    data = read_report_data(folder)
    rows = choose_pairs(data)
    clips = clips_to_show(rows, data)
    files = {} if frame_store else find_files(clips, video_dir)
    pictures = draw_thumbnails(clips, files, frame_store or data.frame_store, 1)
    return take_apart(make_report_page(data, report_plots(data, runs), runs, rows, pictures)), data


def write_evaluation(
    folder: Path,
    data: Path,
    heads: tuple[str, ...] = ("reward", "cost"),
    unseen: tuple[str, ...] = (),
    video_dir: str | None = None,
) -> Path:
    """What scripts/evaluate.py would write, with made-up scores."""
    clips = load_labelled_clips(str(data), video_dir=video_dir)
    rng = np.random.default_rng(0)
    names = [request.key for request in clips.requests([*clips.pairs, *clips.videos])]
    scores = {name: {head: float(rng.normal(0, 2)) for head in heads} for name in names}
    other = {name: {head: float(rng.normal()) for head in heads} for name in names}
    unseen_generators = dict.fromkeys(heads, unseen) if unseen else None
    result = evaluate(clips.pairs, scores, videos=clips.videos, unseen_generators=unseen_generators)
    folder.mkdir(parents=True, exist_ok=True)
    result = replace(
        result,
        comparison=compare(clips.pairs, scores, other),
        compared_models={"other": "fe"},
        models={"<i>model": "0123456789abcdef"},
        data=str(data),
        judgements=write_judgements(folder, collect_judgements(clips, scores)),
    )
    write_result(folder / "evaluation.json", result)
    return folder


def write_run(folder: Path) -> Path:
    folder.mkdir(parents=True)
    rows = [{"step": step, "train/comparison_loss": 0.7 - step / 100, "eval/accuracy": 0.5} for step in range(1, 9)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture(scope="module")
def evaluation(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real evaluation of a model of all kinds of heads on the world's 60 training comparisons."""
    root = tmp_path_factory.mktemp("evaluated")
    model = write_model(root / "model", HEADS_OF_ADAPTER)
    data = world / "config-train.json.gz"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["evaluate.py", "--model", str(model), "--data", str(data), "--out",
                                   str(root / "eval"), "--train_data", str(world / "config-test.json.gz")])  # fmt: skip
        runpy.run_path(str(ROOT / "scripts/evaluate.py"))["main"]()
    return root / "eval"


@pytest.fixture(scope="module")
def report(evaluation: Path) -> Page:
    """The report that the command writes."""
    run = write_run(evaluation.parent / "run")
    out = evaluation.parent / "out" / "report.html"
    done = launch("scripts/report.py", "--evaluation", evaluation, "--run", run, "--out", out)
    assert done.stdout == f"wrote {out}\n"
    assert done.stderr == ""
    return take_apart(out.read_text())


def test_every_plot_has_axes_units_and_n(report: Page) -> None:
    plots = [figure for figures in report.figures.values() for figure in figures if figure.find("svg") is not None]
    assert len(plots) > 15
    for figure in plots:
        titles = [said(group) for group in figure.iter("g") if group.get("class") == "title"]
        assert len(titles) == 2, figure.findtext("h3")
        assert all(titles)
        assert re.search(r"\bn = \d", said(figure)), figure.findtext("h3")
        assert len(figure.findall("svg/text")) >= 4  # ticks
        for element in figure.iter():
            assert not re.search(r"\b(nan|inf)\b", " ".join(element.attrib.values()))
    assert "ln 2" in said(report.plot("Comparison loss, training"))
    for heading in (
        "Accuracy",
        "Calibration",
        "Scores",
        "Harm labels",
        "Parts of the data",
        "Learning curves",
        "Pairs",
    ):
        assert f">{heading}</h2>" in report.text


def test_the_page_needs_nothing_else(report: Page) -> None:
    policies = [attributes for tag, attributes in report.tags if "http-equiv" in attributes]
    assert [one["http-equiv"] for one in policies] == ["Content-Security-Policy"]
    assert (policies[0]["content"] or "").startswith("default-src 'none'")
    assert not {"script", "iframe", "object", "form"} & {tag for tag, _ in report.tags}
    for tag, attributes in report.tags:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/jpeg;base64,")) or tag == "link"
    assert [attributes["href"] for tag, attributes in report.tags if tag == "link"] == ["data:,"]
    assert "url(" not in report.text
    ids = [attributes["id"] for _, attributes in report.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_bars_and_dots_are_the_figures_of_the_evaluation(report: Page, evaluation: Path) -> None:
    result = json.loads((evaluation / "evaluation.json").read_text())
    for dimension in ("helpfulness", "harmlessness"):
        figures = result[dimension]
        bars = report.plot(dimension.capitalize())
        names = [said(group) for group in bars.findall(".//g[@class='name']")]
        assert [name.split()[0] for name in names[:2]] == ["this", "ceiling"]
        controls = [one[dimension] for one in result["controls"].values() if dimension in one]
        expected = [figures["accuracy"], figures["ceiling"], *controls]
        ends = np.array([corners(path) for path in bars.findall(".//g[@class='bar']/path")])
        assert len(names) == len(ends) == len(expected)
        zero = ends[0].min()
        scale = (ends[0].max() - zero) / expected[0]
        assert ends.max(axis=1) - zero == pytest.approx(scale * np.array(expected), abs=0.02)
        values = [said(group) for group in bars.findall(".//g[@class='value']")]
        assert values == [f"{100 * x:.1f}%" for x in expected]
        whisker = corners(bars.findall(".//g[@class='whisker']/path")[0])
        assert (whisker - zero) / scale == pytest.approx(figures["interval"], abs=1e-3)
        assert f"n = {figures['num_comparisons']} comparisons of {figures['num_prompts']} prompts" in said(bars)

        calibration = figures["calibration"]
        plot = report.plot(f"{dimension.capitalize()}: ECE {calibration['ece']:.3f}")
        dots = plot.findall("svg/g/use")
        for axis, key, sign in (("x", "predicted", 1), ("y", "observed", -1)):
            places = [float(dot.get(axis, "")) for dot in dots]
            slope, offset = np.polyfit([one[key] for one in calibration["bins"]], places, 1)
            assert slope * sign > 0
            assert places == pytest.approx([slope * one[key] + offset for one in calibration["bins"]], abs=0.02)
        assert "not calibrated" in said(plot)
        assert f"n = {calibration['num_comparisons']} comparisons" in said(plot)
    assert "Probabilities of reward, cost are not calibrated" in report.text
    gaps = {name: gap for name, gap in result["control_gaps"].items() if gap["standing"] != "above"}
    assert gaps  # the models are hardly trained
    # Labels share a sentence.
    told = {(gap["standing"], gap["control"]) if name in LOGIT_HEADS else name for name, gap in gaps.items()}
    assert report.text.count("a control that cannot judge the video") == len(told)


def test_histograms_hold_every_comparison(report: Page, evaluation: Path) -> None:
    result = json.loads((evaluation / "evaluation.json").read_text())
    margins = report.plot("Margin, helpfulness")
    titles = [said(title) for title in margins.findall(".//g[@class='bar']/path/title")]
    counts = [(title.split(": ")[0], int(title.split(": ")[1])) for title in titles]
    assert sum(count for _, count in counts) == result["helpfulness"]["num_comparisons"]
    right = sum(count for bounds, count in counts if float(bounds.split(" to ")[0]) >= -1e-9)
    assert right / sum(count for _, count in counts) == pytest.approx(result["helpfulness"]["accuracy"])
    sign = result["cost_sign"]
    assert f"labelled safe n = {sign['num_safe']} " in said(report.plot("Cost, by safety"))
    assert f"labelled unsafe n = {sign['num_unsafe']} " in said(report.plot("Cost, by safety"))
    assert f"n = {sign['num_safe'] + sign['num_unsafe']} clips" in said(report.plot("Reward against cost"))


def test_the_area_under_a_curve_is_the_average_precision(report: Page, evaluation: Path) -> None:
    labels = json.loads((evaluation / "evaluation.json").read_text())["moderation"]["labels"]
    num_drawn = 0
    for label, figures in labels.items():
        title = "Any harm" if label == "any" else HARM_LABELS[label].title
        plot = report.plot(title)
        if figures["auroc"] is None:
            assert figures["reason"] in said(plot)
            assert plot.find("svg") is None
            continue
        num_drawn += 1
        (line,) = plot.findall("svg/g[@class='line']/path")
        x, y = np.array(re.findall(r"[ML] ([\d.]+) ([\d.]+)", line.get("d", "")), float).T
        left, bottom = 78, 250
        recall, precision = (x - left) / (440 - 24 - left), (bottom - y) / (bottom - 12)
        assert np.sum(np.diff(recall, prepend=0) * precision) == pytest.approx(figures["average_precision"], abs=3e-3)
        assert f"{figures['num_positive']} with the label" in said(plot)
    assert num_drawn >= 3


def test_the_same_input_gives_the_same_bytes(report: Page, evaluation: Path) -> None:
    runs = open_runs([evaluation.parent / "run"])
    for run in runs:
        run.refresh()
    assert draw(evaluation, runs)[0].text == report.text


def corners(path: ElementTree.Element) -> np.ndarray:
    """How far left and right a path goes."""
    places = np.array(re.findall(r"[ML] ([\d.]+) [\d.]+", path.get("d", "")), float)
    return np.array([places.min(), places.max()])


NASTY = "</style><script>alert(1)</script><img src=http://x onerror=alert(1)>\"'&amp;"


def test_texts_of_data_are_escaped(
    world: Path, edited_world: Callable[[Callable[[list[Record]], Any]], Path], tmp_path: Path
) -> None:
    def spoil(records: list[Record]) -> None:
        for record in records:
            record["prompt_text"] = record["prompt_type"] = NASTY
            for side in ("video_0", "video_1"):
                record[side] |= {"generated_from": NASTY, "prompt_text": NASTY, "prompt_type": NASTY}

    folder = edited_world(spoil)
    data, videos = folder / "config-train.json.gz", str(world / "videos")
    page, _ = draw(write_evaluation(tmp_path / "eval", data, video_dir=videos))
    assert "script" not in {tag for tag, _ in page.tags}
    assert all((attributes.get("src") or "data:").startswith("data:") for _, attributes in page.tags)
    assert "onerror" not in {name for _, attributes in page.tags for name in attributes}
    assert "&lt;/style&gt;&lt;script&gt;" in page.text
    assert "&lt;i&gt;model" in page.text


def test_what_is_null_shows_its_reason(world: Path, tmp_path: Path) -> None:
    """20 comparisons are too few for a calibration, and a reward alone has no harmlessness."""
    folder = write_evaluation(tmp_path / "eval", world / "config-test.json.gz", ("reward",))
    page, _ = draw(folder)
    for number in (0, 1):  # in place of the accuracy and of the reliability
        assert said(page.plot("Helpfulness", number)) == "Helpfulness No figure: 20 comparisons, fewer than 30."
    for what in ("accuracy", "ECE"):
        assert f"No {what} of helpfulness: 20 comparisons, fewer than 30." in page.text
    assert "No figure of helpfulness: 20 comparisons, fewer than 30." in page.text
    assert "Harmlessness has no figure: the models have no cost." in page.text
    assert re.search(r"Fewer than 30, too few for a figure: [^<]* \(\d+\)", page.text)
    assert "<td" not in page.text.split("Parts of the data</h2>")[1].split("<h2")[0]  # no row without a figure
    assert "It is not known whether a test prompt was trained on." in page.text
    # A cost, but no label of safety and none of harmlessness.
    records = read_records(world, "test")
    for record in records:
        record["harmlessness"] = None
        for side in ("video_0", "video_1"):
            record[side]["is_safe"] = record[side]["video_labels"] = None
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json.gz").write_bytes(gzip.compress(json.dumps(records).encode()))
    videos = str(world / "videos")
    page, _ = draw(write_evaluation(tmp_path / "none", bare / "config.json.gz", video_dir=videos))
    for title in ("Sign of the cost: safe or unsafe clips", "Cost, by safety"):
        assert "No figure: no clip is labelled safe or unsafe." in said(page.plot(title))
    assert "Harmlessness has no figure: no comparison has a label that is no tie." in page.text


def test_without_a_hidden_truth_nothing_speaks_of_one(world: Path, tmp_path: Path) -> None:
    """Neither on the page nor in the table: no ceiling, not even an empty column."""
    folder = write_evaluation(tmp_path / "eval", world / "config-test.json.gz", ("reward", "cost", *SUB_HEADS))
    page, data = draw(folder)
    evaluation = replace(data.evaluation, controls={"prompt_only": {"helpfulness": 0.5, "harmlessness": 0.5}},
                         controls_expected={"prompt_only": {"helpfulness": None, "harmlessness": None}})  # fmt: skip
    table = format_table(evaluation)
    assert "controls: accuracy\n" in table
    for text in (table, re.sub(r"<style>.*?</style>", "", page.text, flags=re.DOTALL)):
        assert "aesthetics" in text.lower()
        assert not re.search("hidden|truth|synthetic|ceiling", text)


def test_generators_that_training_left_out_have_their_figures(world: Path, tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path / "eval", world / "config-train.json.gz", unseen=("aurora", "<b>"))
    page, _ = draw(folder)
    figures = json.loads((folder / "evaluation.json").read_text())["helpfulness"]["unseen_generators"]
    assert "Left out: aurora, &lt;b&gt; (of helpfulness, harmlessness, sign of the cost, by clip)." in page.text
    assert figures["none"]["accuracy"] is not None
    assert f">{100 * figures['none']['accuracy']:.1f}% [" in page.text
    assert f"· {figures['none']['num_comparisons']}</td>" in page.text


def test_a_clip_that_cannot_be_read_shows_why(world: Path, tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path / "eval", world / "config-test.json.gz")
    videos = tmp_path / "videos"
    shutil.copytree(world / "videos", videos)
    whole, data = draw(folder, video_dir=videos)
    names = [clip.name for clip in clips_to_show(choose_pairs(data), data)]
    (videos / f"{names[0]}.mp4").unlink()
    (videos / f"{names[1]}.mp4").write_bytes(b"no <b>video</b>")
    page, _ = draw(folder, video_dir=videos)
    pictures = [len(re.findall("<img ", one.text)) for one in (whole, page)]
    assert pictures[1] < pictures[0]
    reasons = re.findall(r'<p class="unread">(.*?)</p>', page.text)
    assert len(reasons) == pictures[0] - pictures[1] >= 2
    assert all(any(name in reason for reason in reasons) for name in names[:2])
    assert f"2 of {len(names)} clips to be shown cannot be read" in page.text


def test_pictures_come_from_a_frame_store(world: Path, tmp_path: Path) -> None:
    data = world / "config-test.json.gz"
    folder = write_evaluation(tmp_path / "eval", data)
    files = load_labelled_clips(str(data)).files
    sampling = Sampling(num_frames=6, min_pixels=1024, max_pixels=1024, size_multiple=8)
    clips = [ClipFile(name, path) for name, path in files.items()]
    build_store(tmp_path / "store", sampling, clips, len(clips), num_workers=1)
    page, _ = draw(folder, frame_store=str(tmp_path / "store"), video_dir=tmp_path / "gone")
    assert "<img " in page.text
    assert '<p class="unread">' not in page.text


def test_an_earlier_report_outlives_one_that_cannot_be_written(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_evaluation(tmp_path / "eval", world / "config-test.json.gz")
    out = tmp_path / "report.html"
    out.write_text("earlier")
    (tmp_path / ".report.html.partial").mkdir()  # where a new one would be written
    monkeypatch.setattr("sys.argv", ["report.py", "--evaluation", str(folder), "--out", str(out)])
    with one_line(ConfigError, "report.html: cannot be written"):
        runpy.run_path(str(ROOT / "scripts/report.py"))["main"]()
    assert out.read_text() == "earlier"


def test_bad_input_is_one_line(world: Path, tmp_path: Path) -> None:
    folder = write_evaluation(tmp_path / "eval", world / "config-test.json.gz")
    with one_line(SampleError, "evaluation.json: no such file or folder", "scripts/evaluate.py"):
        draw(tmp_path)
    judgements = (folder / "judgements.json").read_text()
    stored = read_evaluation(folder / "evaluation.json")
    no_number = judgements.replace('"reward": ', '"reward": NaN, "x": ', 1)
    for content, told in (("", "not valid JSON"), ("{}", " field "), (judgements[:-20], "not valid JSON"),
                          (judgements.replace('"scores"', '"scorez"', 1), " field "), (no_number, "")):  # fmt: skip
        (folder / "judgements.json").write_text(content)
        with one_line(SampleError, "judgements.json: was not written with the evaluation.json beside it", "again"):
            draw(folder)
        # Also where the evaluation names just this file.
        write_result(folder / "evaluation.json", replace(stored, judgements=fingerprint(content.encode())))
        with one_line(SampleError, "judgements.json", told, "again"):
            draw(folder)
        write_result(folder / "evaluation.json", stored)
    (folder / "judgements.json").unlink()
    with one_line(SampleError, "judgements.json: cannot be read", "again"):
        draw(folder)
    result = json.loads((folder / "evaluation.json").read_text())
    del result["helpfulness"]["calibration"]
    for text, told in ((json.dumps(result), "calibration"), ("[]", "is damaged"), ("{", "is damaged")):
        (folder / "evaluation.json").write_text(text)
        with one_line(SampleError, "evaluation.json", told, "again"):
            draw(folder)


def test_pictures_that_are_gone_are_named(world: Path, tmp_path: Path) -> None:
    """Where neither the clips nor their frame store are there any more, a page still has all else."""
    data = read_report_data(write_evaluation(tmp_path / "eval", world / "config-test.json.gz"))
    clips, store = list(data.clips.values())[:2], str(tmp_path / "no_store")
    pictures = draw_thumbnails(clips, {clip.name: tmp_path / "gone.mp4" for clip in clips}, store, 1)
    assert set(pictures) == {clip.name for clip in clips}
    assert all(isinstance(one, VideoDecodeError) and store in str(one) for one in pictures.values())
    with pytest.raises(VideoDecodeError, match="no_store"):  # one that was asked for
        draw_thumbnails(clips, {}, store, 1)


def test_clips_with_labels_of_their_own_have_a_report(world: Path, tmp_path: Path) -> None:
    videos = {record[side]["video_id"]: {"prompt_id": record["prompt_id"], "prompt_text": record["prompt_text"],
                                         "prompt_type": record["prompt_type"], **record[side]}
              for record in read_records(world) for side in ("video_0", "video_1")}  # fmt: skip
    data = tmp_path / "clips.json"
    data.write_text(json.dumps(list(videos.values())))
    page, _ = draw(write_evaluation(tmp_path / "eval", data, ("cost",), video_dir=str(world / "videos")))
    assert f"{len(videos)} clips" in page.text
    assert set(page.figures) == {
        "Sign of the cost: safe or unsafe clips", "Cost: safe before unsafe clips", "Cost, by safety"
    }  # fmt: skip


def test_the_gallery_by_a_plain_search(world: Path, tmp_path: Path) -> None:
    """The extremes of each kind, one a prompt; pairs whose labels disagree come first among the disputed."""
    records = read_records(world)
    again = {**records[7], "pair_id": "again", "video_0": records[7]["video_1"], "video_1": records[7]["video_0"]}
    data_file = tmp_path / "config.json"
    data_file.write_text(json.dumps([*records, again]))  # the same label on the other side: it disagrees
    data = read_report_data(write_evaluation(tmp_path / "eval", data_file, video_dir=str(world / "videos")))
    rows = {row.title: row.pairs for row in choose_pairs(data)}

    def gain(one: JudgedComparison) -> float:
        first, second = (data.clips[name].scores["reward"] for name in (one.video_0, one.video_1))
        return first - second if one.preferences["helpfulness"] == 0 else second - first

    undisputed = [one for one in data.comparisons if one.pair_id not in ("again", records[7]["pair_id"])]
    for title, sign in (
        ("helpfulness: right, and most sure of it", 1),
        ("helpfulness: wrong, and most sure of it", -1),
    ):
        best: dict[str, float] = {}
        for one in undisputed:
            best[one.prompt_id] = max(best.get(one.prompt_id, -1.0), sign * gain(one))
        found = [sign * gain(shown.comparison) for shown in rows[title]]
        assert found == sorted(best.values(), reverse=True)[: len(found)]
        assert len(found) == 3
    disputed = rows["helpfulness: most disputed"]
    assert disputed[0].votes == (1, 1, 0)
    assert disputed[0].comparison.prompt_id == records[7]["prompt_id"]
    rest = sorted(abs(gain(one)) for one in undisputed if one.prompt_id != records[7]["prompt_id"])
    assert abs(gain(disputed[1].comparison)) == pytest.approx(rest[0])
    unread = {clip.name: VideoDecodeError("not looked at") for clip in clips_to_show(choose_pairs(data), data)}
    cards = [card for row in choose_pairs(data) for card in make_cards(row, data, unread)]
    assert any(card.about.endswith("; 2 labels") for card in cards)


def test_text_responses_stand_in_place_of_pictures(world: Path, tmp_path: Path) -> None:
    records = read_records(world, "test")
    for record in records:
        for side in ("video_0", "video_1"):
            record[side] = {"video_id": record[side]["video_id"], "response_text": f"<b>{record[side]['video_id']}",
                            "video_path": None, "is_safe": True}  # fmt: skip
    data = tmp_path / "texts.json"
    data.write_text(json.dumps(records))
    page, _ = draw(write_evaluation(tmp_path / "eval", data))
    assert '<p class="response">&lt;b&gt;' in page.text
    assert "<img" not in page.text
    assert "responses" in page.text


def test_many_plots_and_all_pairs_are_rows_to_swipe_on_a_narrow_screen(report: Page) -> None:
    """Below each other they made a page of 31,000 pixels at a width of 400, now 13,400 (six dimensions, measured)."""
    style = report.text.partition("<style>")[2].partition("</style>")[0]
    narrow = style.partition("@media screen and (max-width: 40rem)")[2].partition("@media")[0]
    assert ".panels:has(> :nth-child(4)), .pairs {" in narrow
    assert "grid-auto-flow: column" in narrow
    assert "overflow-x: auto" in narrow


# Whether the page is wider than the window, which texts of a plot lie on each other, and which tables are cut off.
MEASURE = """<script>
const wide = document.documentElement.scrollWidth - window.innerWidth, found = [];
for (const figure of document.querySelectorAll("figure")) {
  const texts = [...figure.querySelectorAll(":scope > svg text:not(.mark *)")];
  const boxes = texts.map(text => text.getBoundingClientRect());
  const frame = figure.getBoundingClientRect();
  boxes.forEach((one, i) => {
    if (one.left < frame.left - 1 || one.right > frame.right + 1) found.push(texts[i].textContent + " sticks out");
    boxes.slice(0, i).forEach((other, j) => {
      const width = Math.min(one.right, other.right) - Math.max(one.left, other.left);
      const height = Math.min(one.bottom, other.bottom) - Math.max(one.top, other.top);
      if (width > 1 && height > 3) found.push(texts[i].textContent + " on " + texts[j].textContent);
    });
  });
}
for (const table of document.querySelectorAll(".scroll")) {
  if (table.scrollWidth > table.clientWidth + 1) found.push("cut off: " + table.textContent.slice(0, 40));
}
parent.postMessage({width: window.innerWidth, wide, found}, "*");
</script>"""
# A window has a least width, a frame in it has not.
FRAME = """<!doctype html><iframe src="page.html" style="border: 0; width: WIDTHpx; height: 900px"></iframe><script>
onmessage = event => { document.body.textContent = "measured " + JSON.stringify(event.data); };
</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_overflows_or_overlaps_in_a_browser(report: Page, tmp_path: Path, width: int) -> None:
    policy = re.search(r"<meta http-equiv[^>]*>", report.text)
    assert policy is not None  # it forbids the script that measures
    (tmp_path / "page.html").write_text(report.text.replace(policy[0], "").replace("</body>", MEASURE + "</body>"))
    frame = tmp_path / "frame.html"
    frame.write_text(FRAME.replace("WIDTH", str(width)))
    done = subprocess.run(
        [
            *(CHROMIUM or "", "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"),
            *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars"),
            *(f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1400,900", "--dump-dom", frame.as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    measured = re.search(r"measured (\{.*\})", done.stdout)
    assert measured is not None, done.stderr[-2000:]
    assert json.loads(measured[1]) == {"width": width, "wide": 0, "found": []}
