"""The dashboard: every metric of its spec is logged, the page draws what a run wrote and gives away nothing else."""

from __future__ import annotations

import http.client
import importlib.util
import json
import math
import re
import subprocess
import sys
import threading
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import MakeOnce, environment, launch, read_rows, write_training_config
from wandb_files import figures, read_history, read_records

from safe_rlhf_video.data.config_files import write_records
from safe_rlhf_video.data.sources.pku_saferlhf import convert_rows
from safe_rlhf_video.errors import ConfigError
from safe_rlhf_video.heads import DIMENSION_OF_HEAD
from safe_rlhf_video.pages import live_page
from safe_rlhf_video.pages.dashboard_page import dashboard_plots, make_dashboard_body
from safe_rlhf_video.pages.dashboard_spec import SECTIONS, select
from safe_rlhf_video.pages.live_page import build_server
from safe_rlhf_video.pages.run_metrics import RunMetrics, open_runs
from safe_rlhf_video.pages.wandb_workspace import build_workspace
from safe_rlhf_video.training.config import TrackingConfig
from safe_rlhf_video.training.media import ValidationMedia, ValidationPair
from safe_rlhf_video.training.tracking import NUM_BINS, Tracker
from safe_rlhf_video.worlds.text_world import plan_rows

HEADS = (*DIMENSION_OF_HEAD, "harm_any", "severity")


@pytest.fixture(scope="session")
def joint_run(world: Path, make_once: MakeOnce) -> Path:
    """A run of all kinds of heads on two ranks, on clips and on texts."""

    def train(folder: Path) -> None:
        rows = ((f"row {number}", row) for number, (row, _) in enumerate(plan_rows("train", 40, seed=0)))
        write_records(folder / "texts.json.gz", convert_rows(rows)[0])
        paths = [str(world / "config-train.json.gz"), str(folder / "texts.json.gz")]
        data = {"path": paths, "video_dir": str(world / "videos")}
        config = write_training_config(
            folder / "joint.yaml", world, heads=list(HEADS), data=data, optimization={"max_steps": 2},
            checkpoint={"every_steps": 1}, tracking={"wandb": "auto"},
        )  # fmt: skip
        launch("scripts/train_reward.py", "--config", config, ranks=2)

    return make_once("joint_run", train) / "joint"


# What is logged


def test_every_metric_of_the_spec_is_logged(joint_run: Path, cost_run: Path) -> None:
    """A metric is logged by the run of all heads, for each head and part, or in a run of one head by its short name."""
    logged = {name for row in read_history(joint_run) for name in row}
    of_one_head = {name for row in read_history(cost_run) for name in row}
    parts = {name.removeprefix("train/grad_norm/") for name in logged if name.startswith("train/grad_norm/")}
    assert parts == {"adapter", *(f"head_{head}" for head in HEADS)}
    stands_for = {"<head>": DIMENSION_OF_HEAD, "<label>": ["harm_any"], "<part>": parts}
    for panel in (panel for section in SECTIONS for panel in section.panels):
        for metric in panel.metrics:
            placeholder = re.search(r"<\w+>", metric)
            if placeholder:
                wanted = {metric.replace(placeholder[0], name) for name in stands_for[placeholder[0]]}
                assert wanted <= logged, f"{panel.title}: {wanted - logged} is not logged"
            else:
                assert metric in logged | of_one_head, f"{panel.title}: {metric} is not logged"


def test_every_logged_metric_has_a_panel(joint_run: Path, cost_run: Path) -> None:
    names = {name for run in (joint_run, cost_run) for row in read_history(run) for name in row} - {"step"}
    shown = {name for section in SECTIONS for panel in section.panels for name in select(panel, names)}
    assert names == shown


def test_wandb_has_media_config_and_model(joint_run: Path) -> None:
    rows, records = read_history(joint_run), read_records(joint_run)
    assert [figures(row) for row in rows] == read_rows(joint_run)
    last = next(row for row in reversed(rows) if "eval/pairs" in row)
    for head, dimension in DIMENSION_OF_HEAD.items():
        chosen, rejected = (last[f"eval/scores/{head}/{side}"] for side in ("chosen", "rejected"))
        assert sum(chosen["values"]) == sum(rejected["values"]) > 0
        assert chosen["bins"] == rejected["bins"]
        assert len(chosen["values"]) == NUM_BINS
        # The margin's mean is the difference of the sides' means, which the bins give within a bin's width.
        centres = (np.array(chosen["bins"][1:]) + chosen["bins"][:-1]) / 2
        means = [np.average(centres, weights=side["values"]) for side in (chosen, rejected)]
        margin = (means[0] - means[1]) * (-1 if head == "cost" else 1)
        assert margin == pytest.approx(last[f"eval/margin/{head}"], abs=np.diff(centres)[0]), dimension

    artifacts = [record.artifact for record in records if record.WhichOneof("record_type") == "artifact"]
    tables = [artifact for artifact in artifacts if artifact.type == "run_table"]
    assert len(tables) == sum("eval/pairs" in row for row in rows)
    files = {content.path: Path(content.local_path) for content in tables[-1].manifest.contents}
    table = json.loads(files["eval/pairs.table.json"].read_text())
    assert {"prompt", "video_0", "video_1", *(f"{head}_{side}" for head in HEADS for side in (0, 1))} <= set(
        table["columns"]
    )
    assert 1 <= len(table["data"]) <= 4
    shown = [dict(zip(table["columns"], values, strict=True)) for values in table["data"]]
    assert any(row["video_0"] for row in shown)
    for row in shown:
        for side in (0, 1):
            assert all(math.isfinite(row[f"{head}_{side}"]) for head in HEADS)
            if row[f"video_{side}"] is None:
                assert "emblem" in row[f"text_{side}"]
                continue
            frames = row[f"video_{side}"]
            assert (frames["width"], frames["height"]) == (4 * 32, 32)
            assert files[frames["path"]].stat().st_size > 0
    assert all(file.is_relative_to(joint_run) for file in files.values())

    (model,) = [artifact for artifact in artifacts if artifact.type == "model"]
    assert {content.path for content in model.manifest.contents} == {
        str(file.relative_to(joint_run / "model")) for file in (joint_run / "model").rglob("*") if file.is_file()
    }
    (run,) = [record.run for record in records if record.WhichOneof("record_type") == "run"]
    config = {update.key: json.loads(update.value_json) for update in run.config.update}
    assert config["heads"] == list(HEADS)
    assert config["data_fingerprint"] == json.loads(model.metadata)["data"]


def test_texts_and_clips_stand_in_one_table(tmp_path: Path) -> None:
    pairs = (ValidationPair("one", ("a", "b"), {"helpfulness": "video_1"}), ValidationPair("two", ("c", "d"), {}))
    looks = {"a": np.zeros((8, 32, 3), np.uint8), "b": np.zeros((8, 32, 3), np.uint8), "c": "<i>yes", "d": "no"}
    media = ValidationMedia({}, pairs, {name: {"reward": float(ord(name))} for name in "abcd"}, looks)
    with Tracker(tmp_path, TrackingConfig(wandb="offline"), {}, 0, None) as tracker:
        tracker.log(1, {"x": 1.0}, media)
        tracker.log(2, {"x": 2.0}, replace(media, looks={}))
    assert read_rows(tmp_path) == [{"step": 1, "x": 1.0}, {"step": 2, "x": 2.0}]
    files = sorted(tmp_path.glob("wandb/offline-run-*/files/media/table/eval/*.table.json"))
    assert len(files) == 2
    for file in files:
        table = json.loads(file.read_text())
        rows = [dict(zip(table["columns"], values, strict=True)) for values in table["data"]]
        assert [row["text_0"] for row in rows] == [None, "<i>yes"]
        assert [row["video_1"] is None for row in rows] == [False, True]
        assert [(row["reward_0"], row["reward_1"]) for row in rows] == [(97.0, 98.0), (99.0, 100.0)]
        assert [row["label helpfulness"] for row in rows] == ["video_1", None]


def test_a_killed_run_goes_on_with_its_wandb_run(tmp_path: Path) -> None:
    """Also where the parent process, as a notebook may, has a W&B service running and hands it down."""
    run_once = """
import os, signal, sys
from pathlib import Path
from safe_rlhf_video.training.config import TrackingConfig
from safe_rlhf_video.training.tracking import Tracker

assert os.environ["WANDB_SERVICE"]
step, wandb_id = int(sys.argv[1]), sys.argv[2] or None
with Tracker(Path("run"), TrackingConfig(wandb="offline"), {"started_at": step}, step, wandb_id) as tracker:
    print(tracker.wandb_id, flush=True)
    tracker.log(step + 1, {"x": step + 1.0})
    if step == 0:
        tracker.log(step + 2, {"x": -1.0})
        os.kill(os.getpid(), signal.SIGKILL)
"""
    parent = """
import subprocess, sys, time, wandb
from pathlib import Path

def start(*arguments):
    return subprocess.run([sys.executable, "-c", sys.argv[1], *arguments], stdout=subprocess.PIPE, text=True)

with wandb.init(mode="offline"):
    Path("run").mkdir()
    killed = start("0", "")
    assert killed.returncode == -9
    time.sleep(1.1)  # W&B names a run's folders by the second
    resumed = start("1", killed.stdout.strip())
    assert resumed.returncode == 0
    assert resumed.stdout == killed.stdout
"""
    words = [sys.executable, "-c", parent, run_once]
    done = subprocess.run(
        words, cwd=tmp_path, capture_output=True, text=True, env=environment(), timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    resumed = [record.run for record in read_records(run) if record.WhichOneof("record_type") == "run"][-1]
    assert resumed.resume
    assert read_history(run)[-1] == read_rows(run)[-1] == {"step": 2, "x": 2.0}


@pytest.mark.slow
def test_without_media_there_are_figures_alone(tmp_path: Path, world: Path) -> None:
    tracking = {"media": False, "wandb": "auto"}
    path = write_training_config(tmp_path / "run.yaml", world, optimization={"max_steps": 2}, tracking=tracking)
    launch("scripts/train_cost.py", "--config", path)
    rows = read_history(tmp_path / "run")
    assert rows == read_rows(tmp_path / "run")
    assert "eval/loss" in rows[-1]
    assert not any(record.WhichOneof("record_type") == "artifact" for record in read_records(tmp_path / "run"))


# The page


def write_run(folder: Path, rows: list[dict[str, Any]], tail: str = "") -> Path:
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + tail)
    return folder


def panels(body: str) -> dict[str, ElementTree.Element]:
    """The figures of a body by title; fails where it is not well-formed."""
    root = ElementTree.fromstring(f"<body>{body}</body>")
    return {figure.find("h3").text: figure for figure in root.iter("figure")}  # type: ignore[union-attr,misc]


def texts(figure: ElementTree.Element) -> str:
    return " ".join("".join(figure.itertext()).split())


def draw(*folders: Path) -> str:
    runs = read(*folders)
    return make_dashboard_body(runs, dashboard_plots(runs), is_live=False)


def read(*folders: Path) -> list[RunMetrics]:
    runs = open_runs(folders)
    for run in runs:
        run.refresh()
    return runs


def test_a_page_draws_what_a_run_wrote(joint_run: Path) -> None:
    done = launch("scripts/dashboard.py", joint_run, "--out", joint_run.parent / "page.html")
    assert done.stderr == ""
    page = (joint_run.parent / "page.html").read_text()
    assert "<script" not in page
    assert not re.search(r"(src|href)=\"(?!data:,|#)", page)  # nothing from elsewhere
    drawn = panels(page.partition('<body class="wide">')[2].partition("</body>")[0])
    lines = [panel.title for section in SECTIONS for panel in section.panels if panel.kind == "line"]
    assert list(drawn) == lines
    rows = read_rows(joint_run)
    for panel in (panel for section in SECTIONS for panel in section.panels if panel.kind == "line"):
        said = texts(drawn[panel.title])
        assert "optimiser step" in said
        assert panel.unit in said
        assert re.search(rf"n = \d.* steps 1 to {len(rows)}" if "train/" in panel.metrics[0] else r"n = \d", said)
        assert all(mark.label in said for mark in panel.references)
    losses = drawn["Comparison loss, validation"]
    assert "ln 2" in texts(losses)
    assert len(losses.findall(".//ul/li")) == len(DIMENSION_OF_HEAD)
    count = sum("eval/loss" in row for row in rows)
    assert len(losses.findall(".//use")) == count * len(DIMENSION_OF_HEAD)


def test_figures_are_the_plots_of_the_page(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [{"step": 1, "train/loss": 0.7, "train/learning_rate": 1e-3}])
    launch("scripts/dashboard.py", run, "--out", tmp_path / "page.html", "--figures", tmp_path / "figures")
    plots = panels(draw(run))
    assert len(list((tmp_path / "figures").iterdir())) == 2 * len(plots) > 0


def test_places_on_the_page_are_those_of_the_figures(tmp_path: Path) -> None:
    """A line's heights are an affine function of its figures, the same one that the ln 2 line stands by."""
    losses = [0.9, 0.7, 0.5, 0.3]
    rows = [{"step": 10 * number, "train/comparison_loss": loss} for number, loss in enumerate(losses, 1)]
    figure = panels(draw(write_run(tmp_path / "run", rows)))["Comparison loss, training"]
    dots = figure.findall(".//use")
    places = np.array([[float(dot.get("x", "")), float(dot.get("y", ""))] for dot in dots])
    assert [dot.findtext("title") for dot in dots] == [
        f"run: {loss} at step {10 * n}" for n, loss in enumerate(losses, 1)
    ]
    slope, offset = np.polyfit(losses, places[:, 1], 1)
    assert slope < 0
    assert places[:, 1] == pytest.approx(slope * np.array(losses) + offset, abs=0.1)
    assert np.ptp(np.diff(places[:, 0])) < 0.2
    (path,) = figure.findall(".//*[@class='level']/path")
    (height,) = set(re.findall(r"[ML] [\d.]+ ([\d.]+)", path.get("d", "")))
    assert float(height) == pytest.approx(slope * math.log(2.0) + offset, abs=0.1)


def test_nulls_are_gaps_and_many_rows_are_thinned(tmp_path: Path) -> None:
    rows = [{"step": step, "train/loss": None if step == 3 else 1.0} for step in range(1, 6)]
    figure = panels(draw(write_run(tmp_path / "few", rows)))["Loss"]
    (path,) = figure.findall(".//*[@class='line']/path")
    pieces = re.findall(r"M[^M]+", path.get("d", ""))
    assert [piece.count("L") for piece in pieces] == [1, 1]
    assert "n = 5 rows, steps 1 to 5; 1 not finite: gaps" in texts(figure)

    rows = [{"step": step, "train/loss": float(step)} for step in range(1, 3001)]
    figure = panels(draw(write_run(tmp_path / "many", rows)))["Loss"]
    (path,) = figure.findall(".//*[@class='line']/path")
    assert len(re.findall("[ML]", path.get("d", ""))) == 300
    assert "n = 3,000 rows, steps 1 to 3,000; each point the mean of 10" in texts(figure)


@pytest.mark.parametrize(
    "values", [[0.0, 0.0], [1e308, -1e308], [1e-320, 1e300], [5e-324], [-1.0, -2.0], [None], [1e15, 1e15 + 1]]
)
@pytest.mark.parametrize("metric", ["train/loss", "train/grad_norm/adapter", "train/comparison_loss/<b>"])
def test_any_figures_make_a_page(tmp_path: Path, values: list[float | None], metric: str) -> None:
    rows = [{"step": 10 ** (3 * number), metric: value} for number, value in enumerate(values)]
    (figure,) = panels(draw(write_run(tmp_path / "<i>run", rows))).values()
    for element in figure.iter():
        assert "nan" not in " ".join(element.attrib.values())
        assert "inf" not in " ".join(element.attrib.values())
    assert figure.find(".//b") is not None
    assert figure.find(".//i") is None


def test_rows_that_no_run_writes_are_counted(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", [{"step": 1, "train/loss": 1.0}])
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write(f'{{"step": {10**400}, "train/loss": 1.0}}\n{{"step": -1, "train/loss": 1.0}}\n'.encode())
        file.write(b'{"step": 2, "train/\xff": 1.0}\n\0\0\0\n{"step": 3, "train/loss": 2.0}\n')
    (run,) = read(folder)
    assert (run.num_rows, run.num_unreadable, run.last_step) == (2, 4, 3)
    assert "4 lines of metrics.jsonl are no" in make_dashboard_body([run], {}, is_live=True)


def test_a_run_is_read_while_it_is_written(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", [{"step": 1, "a": 1.0}], '{"step": 2, "a"')
    path = folder / "metrics.jsonl"
    (run,) = read(folder)
    assert run.series["a"].steps == [1]
    with path.open("a") as file:
        file.write(': 2.0}\n[1]\nno row\n{"step": 3, "a": "<script>"}\n{"step": 4, "a": NaN}\n')
    run.refresh()
    assert (run.series["a"].steps, run.series["a"].values) == ([1, 2, 4], [1.0, 2.0, None])
    assert (run.num_rows, run.num_unreadable) == (3, 3)
    assert "3 lines of metrics.jsonl are no" in make_dashboard_body([run], {}, is_live=True)
    other = path.with_suffix(".new")  # as a resumed run does, which repeats the last steps
    other.write_text('{"step": 1, "a": 1.0}\n{"step": 2, "a": 2.5}\n')
    other.replace(path)
    run.refresh()
    assert (run.series["a"].values, run.num_unreadable) == ([1.0, 2.5], 0)
    path.unlink()
    run.refresh()
    assert run.num_rows == 0


def test_runs_are_compared_in_the_same_plots(tmp_path: Path) -> None:
    rows = [{"step": step, "eval/accuracy": 0.5 + step / 10, "train/loss": 1.0} for step in (1, 2)]
    joint = [{"step": 1, "eval/accuracy/reward": 0.7, "eval/accuracy/cost": 0.8}]
    folders = [write_run(tmp_path / name, rows) for name in ("a/run", "b/run")] + [write_run(tmp_path / "joint", joint)]
    drawn = panels(draw(*folders))
    assert len(drawn["Loss"].findall(".//ul/li")) == 2
    for folder in folders[:2]:
        assert f"{folder} 1" in texts(drawn["Loss"])
    accuracy = drawn["Accuracy, validation"]
    assert [said.text for said in accuracy.findall(".//ul/li[@class='group']")] == list(map(str, folders))
    assert ["".join(key.itertext()) for key in accuracy.findall(".//ul")[2].findall("li")[1:]] == [
        "reward 0.7",
        "cost 0.8",
    ]
    for given, told in (
        ([tmp_path / "none"], "no such file or folder"),
        ([folders[0], folders[0]], "the same run is given twice"),
    ):
        with pytest.raises(ConfigError, match=told):
            open_runs(given)


@contextmanager
def serving(*folders: Path) -> Iterator[int]:
    with build_server(open_runs(folders), 0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def ask(port: int, path: str, host: str | None = None) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("GET", path, headers={"Host": host} if host else {})
    answer = connection.getresponse()
    assert answer.headers["Content-Security-Policy"].startswith("default-src 'none'")
    return answer.status, answer.read().decode()


def test_the_live_page_follows_a_run_and_serves_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_run(tmp_path / "run", [])
    (folder / "config.yaml").write_text("secret")
    with serving(folder) as port:
        assert "no row in metrics.jsonl yet" in ask(port, "/")[1]
        with (folder / "metrics.jsonl").open("a") as file:
            file.write('{"step": 1, "train/loss": 0.25, "else": 77.5}\n')
        status, body = ask(port, "/body")
        assert status == 200
        assert "0.25" in body
        assert "77.5" not in body
        monkeypatch.setattr(live_page, "dashboard_plots", None)  # nothing new, nothing drawn again
        assert "0.25" in ask(port, "/")[1]
        for path in ("/config.yaml", "/../config.yaml", "/metrics.jsonl", "/body/..%2fconfig.yaml"):
            assert ask(port, path) == (404, "there is only /")
        assert ask(port, "/", "evil.example")[0] == 403
        with pytest.raises(ConfigError, match=f"port {port} cannot be had"):
            build_server([], port)


def test_mistakes_are_one_line(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [])
    for arguments, told in (
        ((tmp_path / "none",), "no such file or folder"),
        ((run, "--out", tmp_path / "page.html"), "no row in metrics.jsonl"),
        ((run, "--port", 70000), "port 70000 cannot be had"),
        ((run, "--figures", tmp_path), "--figures needs --out"),
    ):
        done = launch("scripts/dashboard.py", *arguments, check=False)
        assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
        assert told in done.stderr


# The W&B workspace

HAS_WORKSPACES = importlib.util.find_spec("wandb_workspaces") is not None


@pytest.mark.skipif(HAS_WORKSPACES, reason="the package is there")
def test_a_missing_package_is_one_line() -> None:
    done = launch("scripts/create_dashboard.py", "--project", "p", check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
    assert "pip install wandb-workspaces" in done.stderr


@pytest.mark.skipif(not HAS_WORKSPACES, reason="wandb-workspaces is an optional package")
def test_the_workspace_has_the_panels_of_the_spec(joint_run: Path) -> None:
    workspace = build_workspace("project", "team", "name")
    assert [section.name for section in workspace.sections] == [section.title for section in SECTIONS]
    workspace._to_model()  # what `save` sends
    logged = {name for row in read_history(joint_run) for name in row}
    drawn: set[str] = set()
    for panel in (panel for section in workspace.sections for panel in section.panels):
        regex = getattr(panel, "metric_regex", None)
        drawn |= {name for name in logged if regex and re.match(regex, name)}
        drawn |= {*getattr(panel, "y", ())} | {getattr(panel, "table_name", None)} - {None}
        assert getattr(panel, "x", "step") == "step"
    assert drawn == logged - {"step"}


@pytest.mark.skipif(not HAS_WORKSPACES, reason="wandb-workspaces is an optional package")
def test_a_missing_key_is_one_line(tmp_path: Path) -> None:
    extra = {"WANDB_API_KEY": "", "NETRC": str(tmp_path / "netrc"), "HOME": str(tmp_path)}
    done = launch("scripts/create_dashboard.py", "--project", "p", check=False, **extra)
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
    assert "WANDB_API_KEY" in done.stderr
