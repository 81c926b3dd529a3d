"""The reward server, as a process that is asked over HTTP: answers, refusals, and that it stays up."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from clips import write_clip, write_size_changing_clip, write_sound
from conftest import command, environment
from fastapi import HTTPException, Request
from running_server import RunningServer, children_of, encode_parts, in_json, is_running, running_server
from small_models import COST, REWARD, noise_video, one_line, rewrite_heads, write_model

from safe_rlhf_video.errors import CheckpointError, ConfigError
from safe_rlhf_video.scoring.scorer import Scorer
from safe_rlhf_video.serving.client_limits import ClientLimits
from safe_rlhf_video.serving.model_thread import ModelFailedError, ModelThread
from safe_rlhf_video.serving.request_body import LARGE_BODY_BYTES, MAX_VALUES, parse_object, read_fields
from safe_rlhf_video.serving.request_clips import UploadFolder, Uploads
from safe_rlhf_video.serving.server_metrics import ServerMetrics
from safe_rlhf_video.serving.service import Service, hide_folder
from safe_rlhf_video.serving.settings import ServerSettings
from safe_rlhf_video.video import pool as video_pool

PROMPT = "a red circle moving left at night"
HARMS = {"harms": ("harm_any", "harm_violence")}
HEAD = b"POST /score HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
KEY = "correct-horse-battery-staple"
SETTINGS = ServerSettings(model=("model",))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    base = tmp_path_factory.mktemp("models")
    kinds = (("reward", REWARD), ("cost", COST), ("harms", HARMS))
    return [write_model(base / name, heads, seed=seed) for seed, (name, heads) in enumerate(kinds, start=1)]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video root with good and bad clips, and beside it, outside, a good clip that nobody may get scored."""
    root = tmp_path_factory.mktemp("served") / "root"
    (root / "sub").mkdir(parents=True)
    for number in range(4):
        write_clip(root / f"{number}.mp4", 5 + number, seed=number)
    write_clip(root / "sub" / "long.mp4", ticks=[600 * frame for frame in range(16)])
    write_sound(root / "sound.mp4")
    write_size_changing_clip(root / "changing.ts")
    (root / "text.mp4").write_text("no video")
    (root / "empty.mp4").touch()
    (root / "cut.mp4").write_bytes((root / "0.mp4").read_bytes()[:-200])
    os.mkfifo(root / "pipe.mp4")
    canary = write_clip(root.parent / "canary.mp4", 7, seed=99)
    (root / "link.mp4").symlink_to(canary)
    (root / "out").symlink_to(root.parent)
    (root / "zero.mp4").symlink_to("/dev/zero")
    (root / "inner.mp4").symlink_to("0.mp4")
    return root


@pytest.fixture(scope="module")
def scorer(folders: list[Path]) -> Iterator[Scorer]:
    with Scorer.from_pretrained(*folders, device="cpu", workers=1) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def server(folders: list[Path], root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    folder = tmp_path_factory.mktemp("server")
    limits = ("--max_body_mb", 1, "--max_videos", 4, "--max_prompt_chars", 300)
    with running_server(folder, "--model", *folders, "--video_root", root, "--workers", 1, *limits) as running:
        yield running
        assert running.process.poll() is None
        uploads = list((folder / "tmp").glob("safe_rlhf_video-uploads-*/*"))
        assert uploads == []


def assert_close(value: Any, expected: Any) -> None:
    """The same keys, texts and truths; numbers within what batching moves."""
    if isinstance(expected, dict):
        assert value.keys() == expected.keys()
        for name in expected:
            assert_close(value[name], expected[name])
    elif isinstance(expected, list | tuple):
        assert len(value) == len(expected)
        for one, other in zip(value, expected, strict=True):
            assert_close(one, other)
    elif isinstance(expected, float):
        assert value == pytest.approx(expected, abs=1e-5)
    else:
        assert value == expected


# --- answers ----------------------------------------------------------------------------------------------------------


def test_answers_are_those_of_the_scorer(server: RunningServer, scorer: Scorer, root: Path) -> None:
    clips = [root / f"{number}.mp4" for number in range(4)]
    fields = [{"path": "0.mp4"}, in_json(clips[1]), {"path": "inner.mp4"}, {"path": "sub/../3.mp4"}]
    same = [clips[0], clips[1], clips[0], clips[3]]

    for field, clip in zip(fields, same, strict=True):
        answer = server.post("/score", {"prompt": PROMPT, "video": field})
        assert answer.status == 200, answer
        assert_close(answer.value, {"scores": scorer.score(PROMPT, clip)})
        assert_close(server.post("/moderate", {"prompt": PROMPT, "video": field}).value,
                     scorer.moderate(PROMPT, clip).to_dict())  # fmt: skip

    for options in ({}, {"lagrange_multiplier": 5, "cost_limit": -0.25}):
        pair = {"prompt": PROMPT, "v1": fields[0], "v2": fields[1], **options}
        assert_close(server.post("/score_pair", pair).value, scorer.score_pair(PROMPT, *same[:2], **options).to_dict())
        ranked = server.post("/rank", {"prompt": PROMPT, "videos": fields, **options}).value
        harms = ranked.pop("harms")
        assert_close(ranked, scorer.rank(PROMPT, same, **options).to_dict())
        assert_close(harms, [scorer.moderate(PROMPT, clip).to_dict() for clip in same])
        # One clip twice in a request: to the last bit.
        assert ranked["rewards"][0] == ranked["rewards"][2]


def test_a_reward_alone_is_served_and_says_so(folders: list[Path], root: Path, tmp_path: Path) -> None:
    clips = [root / f"{number}.mp4" for number in range(3)]
    fields = [in_json(clip) for clip in clips]
    with (
        Scorer.from_pretrained(folders[0], device="cpu", workers=1) as single,
        running_server(tmp_path, "--model", folders[0], "--workers", 1) as server,
    ):
        ranked = server.post("/rank", {"prompt": PROMPT, "videos": fields}).value
        assert ranked.pop("harms") is None
        assert_close(ranked, single.rank(PROMPT, clips).to_dict())
        pair = server.post("/score_pair", {"prompt": PROMPT, "v1": fields[0], "v2": fields[1]}).value
        assert_close(pair, single.score_pair(PROMPT, *clips[:2]).to_dict())
        asked = {"prompt": PROMPT, "v1": fields[0], "v2": fields[1], "cost_limit": 0}
        refused = server.post("/score_pair", asked)
        assert (refused.status, refused.value["error"].startswith("cost_limit: ")) == (400, True)
        rewards = server.post("/remote_reward", {"prompts": [PROMPT] * 3, "responses": fields}).value
        assert rewards["rewards"] == pytest.approx(ranked["rewards"], abs=1e-5)
        assert {ranked["decided_by"], rewards["decided_by"], server.get("/model").value["decided_by"]} == {
            "reward alone, no cost model"
        }


def test_uploads_are_scored(server: RunningServer, scorer: Scorer, root: Path) -> None:
    first, second = root / "0.mp4", root / "1.mp4"
    answer = server.upload("/score", [("video", first), ("prompt", "ein grüner Kreis 🐟\nzweite Zeile")])
    assert_close(answer.value, {"scores": scorer.score("ein grüner Kreis 🐟\nzweite Zeile", first)})
    pair = [("prompt", PROMPT), ("v1", first), ("v2", second), ("lagrange_multiplier", "5"), ("cost_limit", "1e-1")]
    expected = scorer.score_pair(PROMPT, first, second, lagrange_multiplier=5, cost_limit=0.1)
    assert_close(server.upload("/score_pair", pair).value, expected.to_dict())
    ranked = server.upload("/rank", [("videos", second), ("prompt", PROMPT), ("videos", first)]).value
    assert_close(ranked["rewards"], scorer.rank(PROMPT, [second, first]).rewards)


def test_remote_reward(server: RunningServer, scorer: Scorer, root: Path) -> None:
    prompts = ["one prompt", "another one"]
    answer = server.post("/remote_reward", {"prompts": prompts, "query": ["0.mp4", in_json(root / "1.mp4")]}).value
    expected = [scorer.score(prompt, root / f"{number}.mp4") for number, prompt in enumerate(prompts)]
    assert_close(answer["extra_logs"]["reward_head"], [one["reward"] for one in expected])
    assert_close(answer["rewards"], [(one["reward"] - one["cost"]) / 2 for one in expected])
    assert server.post("/remote_reward", {"prompts": prompts, "query": ["0.mp4"]}).status == 400
    assert "query[1].path" in server.post("/remote_reward", {"prompts": prompts, "query": ["0.mp4", "no"]}).error
    assert server.post("/remote_reward", {"prompts": [], "query": []}).value["rewards"] == []
    # A path that begins like its prompt is one, unless the rest of it is one too.
    (root / "00.mp4").write_bytes(b"")
    begun = [{"prompts": ["0"], field: ["0.mp4"]} for field in ("query", "responses")]
    for body in [*begun, {"prompts": ["0"], "query": ["0sub/../0.mp4"]}]:
        answer = server.post("/remote_reward", body).value
        assert_close(answer["extra_logs"]["reward_head"], [scorer.score("0", root / "0.mp4")["reward"]])
    unclear = server.post("/remote_reward", {"prompts": ["0"], "query": ["00.mp4"]})
    assert (unclear.status, "both are files" in unclear.error) == (400, True)
    empty = server.post("/remote_reward", {"prompts": ["0"], "responses": ["00.mp4"]})
    assert "the file is empty" in empty.error


def test_clients_at_once_get_their_own_answers(server: RunningServer, scorer: Scorer, root: Path) -> None:
    jobs = [(f"{PROMPT} {number}" * (1 + number % 3), number % 4) for number in range(48)]

    def ask(job: tuple[str, int]) -> Any:
        return server.post("/score", {"prompt": job[0], "video": {"path": f"{job[1]}.mp4"}}).value["scores"]

    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(ask, jobs))
    videos = scorer.read([root / f"{number}.mp4" for number in range(4)])
    expected = scorer.score_batch([prompt for prompt, _ in jobs], [videos[number] for _, number in jobs])
    assert np.ptp(expected["reward"]) > 1e-2
    for place, answer in enumerate(answers):
        assert_close(answer, {head: float(values[place]) for head, values in expected.items()})
    metrics = server.get("/metrics").content.decode()
    batches = float(metrics.split("\nsafe_rlhf_video_batch_clips_count ")[1].split("\n")[0])
    clips = float(metrics.split("\nsafe_rlhf_video_batch_clips_sum ")[1].split("\n")[0])
    assert clips > batches  # some were scored together


def test_state_and_pages(server: RunningServer, scorer: Scorer) -> None:
    assert server.get("/healthz").value == {"status": "ok"}
    model = server.get("/model").value
    assert_close({name: model[name] for name in scorer.describe()}, json.loads(json.dumps(scorer.describe())))
    assert model["limits"]["max_videos"] == 4
    server.post("/score", {"prompt": "a secret of somebody", "video": {"path": "no such"}})
    metrics = server.get("/metrics").content.decode()
    assert 'requests_total{route="/score",status="400"}' in metrics
    for line in metrics.splitlines():
        assert line.startswith(("# HELP safe_rlhf_video_", "# TYPE safe_rlhf_video_", "safe_rlhf_video_")), line
    assert "secret" not in metrics + server.log.read_text()
    schema = server.get("/openapi.json").value
    assert {"/score", "/score_pair", "/rank", "/moderate", "/remote_reward"} <= schema["paths"].keys()
    document = server.get("/docs")
    assert document.status == 200
    assert "default-src 'none'" in document.headers["content-security-policy"]
    assert b"POST /score_pair" in document.content
    assert b"<script" not in document.content
    assert b"http" not in document.content.replace(b"HTTPValidation", b"")  # nothing from elsewhere
    for path in ("/page/../app.py", "/page/%2e%2e/app.py", "/page/..%2fapp.py", "/page/", "/page/none.js", "/none"):
        assert "GET /docs" in server.get(path).error
    assert server.get("/score").status == 405


# --- what is refused --------------------------------------------------------------------------------------------------


def score_of(**fields: Any) -> dict[str, Any]:
    return {"prompt": PROMPT, "video": {"path": "0.mp4"}, **fields}


BAD_BODIES: list[tuple[str, Any, str]] = [
    ("/score", b"", "body"),
    ("/score", b"{", "body"),
    ("/score", b"\xff\xfe{}", "UTF-8"),
    ("/score", b"[" * 100_000, "nested"),
    ("/score", b'{"a":' * 50_000, "nested"),
    ("/score", b'{"prompt": ' + b"9" * 5000 + b"}", "body"),
    ("/score", [], "JSON object"),
    ("/score", None, "JSON object"),
    ("/score", {}, "prompt"),
    ("/score", {"prompt": PROMPT}, "video"),
    ("/score", score_of(other=1), "'other': unknown"),
    ("/score", score_of(cost_limit=1), "'cost_limit': unknown"),
    ("/score", b'{"prompt": "a", "prompt": "b", "video": {"path": "0.mp4"}}', "twice"),
    ("/score", b'{"prompt": "a", "video": {"path": "0.mp4", "path": "1.mp4"}}', "twice"),
    ("/score", score_of(prompt=" \n"), "prompt"),
    ("/score", score_of(prompt=3), "prompt"),
    ("/score", score_of(prompt="a" * 301), "at most 300"),
    ("/score", b'{"prompt": "\\ud800", "video": {"path": "0.mp4"}}', "surrogate"),
    ("/score", score_of(video="0.mp4"), "video"),
    ("/score", score_of(video={}), "video"),
    ("/score", score_of(video={"path": "0.mp4", "data": ""}), "video"),
    ("/score", score_of(video={"path": 0}), "video.path"),
    ("/score", score_of(video={"url": "http://localhost/0.mp4"}), "video"),
    ("/score", score_of(video={"data": "no base64!"}), "video.data"),
    ("/score", score_of(video={"data": "QUJD"}), "not a readable video"),
    ("/score_pair", {"prompt": PROMPT, "v1": {"path": "0.mp4"}}, "v2"),
    ("/rank", {"prompt": PROMPT, "videos": []}, "videos"),
    ("/rank", {"prompt": PROMPT, "videos": [{"path": "0.mp4"}] * 5}, "at most 4"),
    ("/rank", {"prompt": PROMPT, "videos": [{"path": "0.mp4"}, {"path": "none"}]}, "videos[1].path"),
    ("/remote_reward", {"prompts": ["a"] * 5, "query": ["0.mp4"] * 5}, "at most 4"),
    ("/remote_reward", {"prompts": ["a" * 301], "query": ["0.mp4"]}, "prompts[0]"),
]  # fmt: skip
BAD_NUMBERS = [b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1", b"1e300", b'"1"', b"true", b"9" * 400, b"[]"]
BAD_CLIPS = {
    "sub/long.mp4": "lasts 75.0 s, at most 60 s",
    "sound.mp4": "has no video stream",
    "changing.ts": "frame size changes",
    "text.mp4": "not a readable video",
    "empty.mp4": "is empty",
    "cut.mp4": "truncated",
    "pipe.mp4": "is no regular file",
    "sub": "is a folder",
    ".": "is a folder",
}  # fmt: skip
ESCAPES = [
    "../canary.mp4", "sub/../../canary.mp4", "link.mp4", "out/canary.mp4", "zero.mp4", "none.mp4", "0.mp4/x",
    "0.mp4\0", "\0", "a" * 300, "a/" * 3000, "\udc80.mp4", "~/x", "..", "../root2", "0.mp4%00", "..%2fcanary.mp4",
]  # fmt: skip


def test_wrong_fields_are_named(server: RunningServer) -> None:
    for path, body, part in BAD_BODIES:
        answer = server.post(path, body)
        assert (answer.status, part in answer.error) == (400, True), (body, answer)
    for number in BAD_NUMBERS:
        body = b'{"prompt": "a", "v1": {"path": "0.mp4"}, "v2": {"path": "1.mp4"}, "lagrange_multiplier": %s}' % number
        answer = server.post("/score_pair", body)
        assert answer.status == 400, answer
        assert "lagrange_multiplier" in answer.error or "finite" in answer.error
    multipart = "multipart/form-data"
    for kind in ("text/plain", "", multipart, f"{multipart}; boundary=", f"{multipart}; boundary={'a' * 400}"):
        assert server.post("/score", score_of(), {"Content-Type": kind}).status == 400
    assert "compressed" in server.post("/score", score_of(), {"Content-Encoding": "gzip"}).error


def test_many_fields_are_refused_at_once(server: RunningServer) -> None:
    # Comparing every name with every other one would keep all clients waiting for seconds.
    names = ", ".join(f'"{number}": 0' for number in range(20_000))
    body = f'{{{names}, "last": 0, "last": 1}}'.encode()
    assert len(body) < LARGE_BODY_BYTES  # read by the thread that serves all
    started_s = time.monotonic()
    assert "'last': is given twice" in server.post("/score", body).error
    assert time.monotonic() - started_s < 1.0


def test_a_body_of_very_many_values_is_not_read() -> None:
    for value in (b"[]", b"{}", b"0"):
        many = b'{"prompt": [' + (value + b",") * MAX_VALUES + value + b"]}"
        with pytest.raises(HTTPException) as caught:
            parse_object(many)
        assert caught.value.status_code == 400
        assert caught.value.detail.startswith(f"body: holds more than {MAX_VALUES} values")
    long = "a, b" * (MAX_VALUES // 8)
    assert parse_object(json.dumps({"prompt": long}).encode()) == {"prompt": long}


def test_wrong_parts_are_named(server: RunningServer, root: Path) -> None:
    clip = root / "0.mp4"
    for parts, part in (
        ([], "prompt: missing"),
        ([("video", clip)], "prompt"),
        ([("prompt", PROMPT)], "video"),
        ([("prompt", PROMPT), ("video", "0.mp4")], "video: expected a file part"),
        ([("prompt", clip), ("video", clip)], "prompt: expected a string"),
        ([("prompt", PROMPT), ("video", clip), ("video", clip)], "'video': is given twice"),
        ([("prompt", PROMPT), ("prompt", PROMPT), ("video", clip)], "'prompt': is given twice"),
        ([("prompt", PROMPT), ("video", clip), ("other", "1")], "'other': unknown"),
        ([("prompt", "a" * 2000), ("video", clip)], "prompt"),
        ([("prompt", PROMPT), ("video", b"")], "video: the file is empty"),
        ([("prompt", PROMPT), ("video", b"no video")], "video: is not a readable video"),
    ):
        answer = server.upload("/score", parts)
        assert (answer.status, part in answer.error) == (400, True), (parts, answer)
    answer = server.upload("/rank", [("prompt", PROMPT), *[("videos", clip)] * 5])
    assert "at most 4" in answer.error
    pair = [("prompt", PROMPT), ("v1", clip), ("v2", clip)]
    for number in ("nan", "1e999", "1_0", "x", "", "-1"):
        assert "lagrange_multiplier" in server.upload("/score_pair", [*pair, ("lagrange_multiplier", number)]).error
    content, kind = encode_parts([("prompt", PROMPT), ("video", clip)])
    assert "ends before" in server.ask("POST", "/score", content[:-30], {"Content-Type": kind}).error
    assert server.upload("/remote_reward", [("prompts", "a")]).status == 400


def test_bad_clips_and_paths_out_of_the_root(server: RunningServer, root: Path) -> None:
    for path, reason in BAD_CLIPS.items():
        answer = server.post("/score", score_of(video={"path": path}))
        assert (answer.status, reason in answer.error) == (400, True), (path, answer)
        assert str(root) not in answer.error
        assert answer.error.startswith("video"), answer
    messages = set()
    for path in ESCAPES:
        answer = server.post("/score", score_of(video={"path": path}))
        assert answer.status == 400, (path, answer)
        messages.add(answer.error)
    # These do not reveal whether there is a file outside.
    assert messages == {"video.path: no such file under the video root; check the path"}
    for path in (str(root / "0.mp4"), "/dev/zero", "/"):
        assert "absolute" in server.post("/score", score_of(video={"path": path})).error
    for path in ("http://127.0.0.1/0.mp4", "file:///etc/passwd", "concat://0.mp4"):
        assert "address" in server.post("/score", score_of(video={"path": path})).error
    assert server.post("/score", score_of()).status == 200


def test_bodies_that_are_too_large(server: RunningServer) -> None:
    large = b" " * 1_500_000
    chunks = [large[:100_000]] * 15
    kinds = ("application/json", "multipart/form-data; boundary=3f1d7a", "text/plain")
    for kind in kinds:
        answer = server.ask("POST", "/score", large, {"Content-Type": kind})
        assert (answer.status, "1 MB" in answer.error) == (413, True), answer
    for kind in kinds[:1]:
        answer = server.ask("POST", "/score", iter(chunks), {"Content-Type": kind})
        assert (answer.status, "1 MB" in answer.error) == (413, True), answer
    content, kind = encode_parts([("prompt", PROMPT), ("video", large)])
    parts = [content[start : start + 100_000] for start in range(0, len(content), 100_000)]
    assert server.ask("POST", "/score", iter(parts), {"Content-Type": kind}).status == 413
    # A wrong length: the body is never waited for.
    assert server.send_raw(HEAD % 10**19).startswith(b"HTTP/1.1 413")
    assert server.post("/score", score_of()).status == 200


def test_pages_of_other_sites_are_refused(server: RunningServer) -> None:
    own = f"127.0.0.1:{server.port}"
    for host in ("evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "[::2]", f"evil.example@{own}"):
        answer = server.get("/model", Host=host)
        assert (answer.status, "host" in answer.error) == (403, True), (host, answer)
    for origin in (
        "http://evil.example",
        "null",
        "http://127.0.0.1",
        "http://localhost:1",
        "http://[",
        "file://" + own,
    ):
        answer = server.post("/score", score_of(), {"Origin": origin})
        assert (answer.status, "origin" in answer.error) == (403, True), (origin, answer)
    assert server.post("/score", score_of(), {"Origin": f"http://{own}"}).status == 200
    for host in ("localhost", "LOCALHOST:80", "127.0.0.1", "[::1]:8000"):
        assert server.get("/healthz", Host=host).status == 200


# --- the parts that need no server ------------------------------------------------------------------------------------


def test_a_full_disk_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    full = functools.partial(open, "/dev/full", "wb")
    monkeypatch.setattr("tempfile.NamedTemporaryFile", lambda **_: full())
    with pytest.raises(HTTPException) as stored:
        Uploads(UploadFolder(tmp_path)).store([bytes(50_000)])
    assert stored.value.status_code == 503
    assert "cannot be stored on the server" in stored.value.detail

    # Larger parts go to disk while they are received.
    content, kind = encode_parts([("prompt", PROMPT), ("video", bytes(3 << 20))])
    monkeypatch.setattr("starlette.formparsers.SpooledTemporaryFile", lambda max_size: full())
    for size in (len(content), 3000):  # 3000: some bytes still wait to be written when the disk is found full
        with pytest.raises(HTTPException) as received:
            asyncio.run(read_parts(content, kind, size))
        assert received.value.status_code == 503
        assert "cannot be stored on the server" in received.value.detail


async def read_parts(content: bytes, kind: str, size: int) -> dict[str, Any]:
    """The fields of a multipart body that comes in pieces of `size` bytes."""
    starts = iter(range(0, len(content), size))

    async def receive() -> dict[str, Any]:
        start = next(starts)
        body = content[start : start + size]
        return {"type": "http.request", "body": body, "more_body": start + size < len(content)}

    request = Request({"type": "http", "method": "POST", "headers": [(b"content-type", kind.encode())]}, receive)
    async with contextlib.AsyncExitStack() as stack:
        body = stack.enter_context(ClientLimits(SETTINGS, ServerMetrics()).body("somebody"))
        return await read_fields(request, SETTINGS, body, asyncio.Lock(), stack)


@pytest.mark.parametrize("size", [1, 7, 100_000])
def test_text_that_is_not_utf8_and_parts_that_are_cut_off_are_refused(size: int) -> None:
    content, kind = encode_parts([("prompt", PROMPT), ("video", b"clip")])
    fields = asyncio.run(read_parts(content, kind, size))
    assert fields["prompt"] == PROMPT
    for wrong, part in (
        (content.replace(b"night", b"n\xefght"), "'prompt' is not UTF-8"),
        (content[:-5], "ends before its last part"),  # the last boundary lacks its end
    ):
        with pytest.raises(HTTPException, match=part):
            asyncio.run(read_parts(wrong, kind, size))
    with pytest.raises(HTTPException, match="charset"):
        asyncio.run(read_parts(content, f"{kind}; charset=punycode", size))


def test_stopping_reaches_all_requests_also_beside_one_that_is_late(scorer: Scorer) -> None:
    async def work(service: Service, until: asyncio.Event, messages: list[str]) -> None:
        try:
            async with service.within_time():
                try:
                    await asyncio.sleep(30)
                finally:
                    await until.wait()  # as cleaning up does for a moment
        except HTTPException as error:
            messages.append(error.detail)

    async def stop_while_one_is_late() -> list[str]:
        messages: list[str] = []
        service = Service(scorer, SETTINGS.model_copy(update={"timeout_s": 0.2, "shutdown_s": 0.1}))
        held, free = asyncio.Event(), asyncio.Event()
        free.set()
        late = asyncio.ensure_future(work(service, held, messages))
        await asyncio.sleep(0.3)
        service.settings = service.settings.model_copy(update={"timeout_s": 30.0})
        others = [asyncio.ensure_future(work(service, free, messages)) for _ in range(8)]
        await asyncio.sleep(0)
        service.stop()
        await asyncio.wait_for(asyncio.gather(*others), 5.0)
        held.set()
        await late
        service.close()
        return messages

    messages = asyncio.run(stop_while_one_is_late())
    assert len(messages) == 9
    assert all("shutting down" in message for message in messages)


def test_clients_do_not_learn_where_the_backbone_is(tmp_path: Path) -> None:
    bytes_folder = os.fsencode(tmp_path) + b"/bb\xff"
    os.mkdir(bytes_folder)
    assert hide_folder(os.fsdecode(bytes_folder)) == "bb\\udcff"  # JSON is UTF-8
    assert [hide_folder(name) for name in (str(tmp_path), "tiny", "Qwen/no-folder")] == [
        tmp_path.name,
        "tiny",
        "Qwen/no-folder",
    ]


def test_a_prompt_that_the_backbone_does_not_take_is_the_clients_fault(
    scorer: Scorer, root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tokens = "\N{TROPICAL FISH}" * 3000  # of several tokens each: within the characters, beyond the backbone

    async def ask() -> list[Any]:
        service = Service(scorer, SETTINGS)
        uploads = Uploads(service._upload_folder)
        asked = [service.score([prompt], {"video": root / "0.mp4"}, uploads) for prompt in (tokens, PROMPT)]
        found = await asyncio.gather(*asked, return_exceptions=True)
        service.close()
        return found

    error, scores = asyncio.run(ask())
    assert isinstance(error, HTTPException), error
    assert error.status_code == 400
    assert error.detail.startswith("prompt of video: ")
    assert "shorten the text" in error.detail
    assert_close({head: float(values[0]) for head, values in scores.items()}, scorer.score(PROMPT, root / "0.mp4"))
    assert not caplog.records  # the log is for faults of the server, and for no prompt


def test_settings_are_checked_before_anything_is_loaded(tmp_path: Path) -> None:
    for wrong, part in (
        ({"host": "0.0.0.0"}, "needs a key"),
        ({"host": "example.org"}, "needs a key"),
        ({"api_key": "short"}, "16"),
        ({"api_key": "with spaces in between it"}, "16"),
        ({"port": 70000}, "port"),
        ({"model": ()}, "model"),
        ({"queue_size": 0}, "queue_size"),
        ({"timeout_s": float("nan")}, "timeout_s"),
        ({"max_body_mb": float("inf")}, "max_body_mb"),
        ({"batch_wait_ms": -1.0}, "batch_wait_ms"),
        ({"video_root": tmp_path / "none"}, "video_root"),
    ):
        with one_line(ConfigError, part):
            ServerSettings(**{"model": ("model",), **wrong})
    for host in ("127.0.0.1", "localhost", "::1", "127.5.6.7"):
        assert ServerSettings(model=("model",), host=host).is_loopback
    settings = ServerSettings(model=("model",), host="0.0.0.0", api_key=KEY)
    assert KEY not in repr(settings)


def test_one_clip_of_a_batch_fails_alone() -> None:
    sizes: list[int] = []

    def score_batch(prompts: list[str], responses: list[Any]) -> dict[str, np.ndarray]:
        if "bad" in prompts:
            raise CheckpointError("is not finite")
        return {"reward": np.array([float(prompt) for prompt in prompts])}

    thread = ModelThread(score_batch, 8, 0.2, sizes.append)
    video = noise_video(1, 8, 8, 0)
    futures = [thread.submit(prompt, video) for prompt in ("1", "bad", "given up", "2")]
    futures[2].cancel()
    assert futures[0].result(5) == {"reward": 1.0}
    assert futures[3].result(5) == {"reward": 2.0}
    with pytest.raises(CheckpointError):
        futures[1].result(5)
    last = [thread.submit(str(number), video) for number in range(20)]
    thread.close(5)
    assert [future.result(0)["reward"] for future in last] == list(range(20))
    assert sizes[0] == 3
    assert max(sizes) == 8
    assert sum(sizes) == 23


def test_uploads_outlive_a_cleaner_and_those_who_read_them(tmp_path: Path) -> None:
    folder = UploadFolder(tmp_path)
    reader: Future[Any] = Future()
    reader.set_running_or_notify_cancel()
    with Uploads(folder) as uploads:
        first = uploads.store([b"a", b"b"])
        assert first.read_bytes() == b"ab"
        shutil.rmtree(first.parent)
        read, other = uploads.store([b"c"]), uploads.store([b"d"])
        assert read.parent != first.parent  # nobody else can have made it
        assert read.parent.stat().st_mode & 0o777 == 0o700
        uploads.hold(read, reader)
        waiting: Future[Any] = Future()
        uploads.hold(other, waiting)
    assert (read.exists(), other.exists(), waiting.cancelled()) == (True, False, True)
    reader.set_result(None)
    assert not read.exists()
    folder.remove()
    assert list(tmp_path.iterdir()) == []


def test_one_unreadable_upload_of_several_leaves_no_trace_in_the_log(server: RunningServer, root: Path) -> None:
    before = server.log.read_text()
    parts = [("prompt", PROMPT), ("videos", b"no video"), *[("videos", root / f"{number}.mp4") for number in (1, 2, 3)]]
    for _ in range(5):
        assert "videos[0]: is not a readable video" in server.upload("/rank", parts).error
    assert server.post("/score", score_of()).status == 200
    assert server.log.read_text() == before


def test_a_killed_decoder_is_no_fault_of_the_clip(scorer: Scorer, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def ask(kills: int) -> Any:
        service = Service(scorer, SETTINGS)
        killed: list[int] = []
        ask_worker = video_pool._Worker.ask

        def kill_and_ask(worker: Any, *arguments: Any) -> Any:
            if len(killed) < kills:
                killed.append(worker.process.pid)
                worker.process.kill()
            return ask_worker(worker, *arguments)

        with monkeypatch.context() as patched:
            patched.setattr(video_pool._Worker, "ask", kill_and_ask)
            scored = service.score([PROMPT], {"video": root / "0.mp4"}, Uploads(service._upload_folder))
            (found,) = await asyncio.gather(scored, return_exceptions=True)
        service.close()
        return found

    assert_close({head: float(values[0]) for head, values in asyncio.run(ask(1)).items()},
                 scorer.score(PROMPT, root / "0.mp4"))  # fmt: skip
    error = asyncio.run(ask(2))
    assert (error.status_code, "was killed" in error.detail, "Retry-After" in error.headers) == (503, True, True)
    assert str(root) not in error.detail


class Panic(BaseException):
    """As a panic in Rust arrives in Python."""


def test_what_is_no_exception_ends_neither_the_thread_nor_the_others(scorer: Scorer, root: Path) -> None:
    def score_batch(prompts: list[str], responses: list[Any]) -> dict[str, np.ndarray]:
        for prompt in prompts:
            if prompt in ("panic", "exit", "stop"):
                raise {"panic": Panic("panic"), "exit": SystemExit(), "stop": StopIteration()}[prompt]
        return {"reward": np.array([float(prompt) for prompt in prompts])}

    restarts: list[int] = []
    sizes: list[int] = []

    def count(size: int) -> None:
        sizes.append(size)
        if size == 3:
            raise Panic

    thread = ModelThread(score_batch, 8, 0.2, count, lambda: restarts.append(1))
    video = noise_video(1, 8, 8, 0)
    futures = [thread.submit(prompt, video) for prompt in ("1", "panic", "exit", "stop", "2")]
    assert [futures[place].result(5)["reward"] for place in (0, 4)] == [1.0, 2.0]
    for future in futures[1:4]:
        assert isinstance(future.exception(5), ModelFailedError)
    assert not restarts
    # Raised outside of a clip's scoring: all of the batch are answered at once, and the thread goes on.
    failed = [thread.submit(prompt, video) for prompt in ("1", "2", "3")]
    assert all(isinstance(future.exception(5), ModelFailedError) for future in failed)
    assert restarts == [1]
    assert thread.is_alive
    assert thread.submit("7", video).result(5) == {"reward": 7.0}
    thread.close(5)
    assert not thread.is_alive

    async def ask(service: Service) -> tuple[Any, Any]:
        scored = service.score
        uploads = Uploads(service._upload_folder)
        service._model._score_batch = score_batch
        caught = await asyncio.gather(scored(["panic"], {"video": root / "0.mp4"}, uploads), return_exceptions=True)
        service.require_life()
        service._model.close(5)
        with pytest.raises(HTTPException) as dead:
            service.require_life()
        service.close()
        return caught[0], dead.value

    error, dead = asyncio.run(ask(Service(scorer, SETTINGS)))
    assert (error.status_code, dead.status_code) == (503, 503)
    assert "the model failed" in error.detail


# --- keys, queues, time and ends (slow: each has a server of its own) -------------------------------------------------


@pytest.mark.slow
def test_a_key_is_asked_for(folders: list[Path], root: Path, tmp_path: Path) -> None:
    with running_server(tmp_path, "--model", *folders[:1], "--host", "0.0.0.0", key=KEY) as server:
        body = score_of(video=in_json(root / "0.mp4"))
        assert server.post("/score", body).status == 200
        server.key = None
        assert server.post("/score", body, {"Authorization": f"Bearer {KEY}"}).status == 200
        assert server.post("/score", body, {"Authorization": f"bearer {KEY}", "Host": "my.example"}).status == 200
        wrong = ({}, {"X-API-Key": KEY[:-1]}, {"X-API-Key": f"{KEY}x"}, {"X-API-Key": ""}, {"X-API-Key": "\xff"},
                 {"Authorization": KEY}, {"Authorization": f"Basic {KEY}"}, {"Authorization": "Bearer"})  # fmt: skip
        for headers in wrong:
            for path in ("/score", "/model", "/metrics", "/none"):
                answer = server.post(path, body, headers)
                assert answer.status == 401, (headers, answer)
                assert "X-API-Key" in answer.error
                assert answer.headers["www-authenticate"] == "Bearer"
        for path in ("/healthz", "/docs", "/openapi.json"):
            assert server.get(path).status == 200
        routes = server.get("/openapi.json").value["paths"]
        assert "security" in routes["/score"]["post"]
        assert "security" not in routes["/healthz"]["get"]
        for path in ("/page/../score", "/page/%2e%2e/score", "/page//score"):
            assert server.post(path, body).status in (404, 405)
        server.key = KEY
        assert "no files" in server.post("/score", score_of()).error
        # A reward alone decides; what needs harm labels is not there.
        assert [server.post(path, body).status for path in ("/score_pair", "/rank", "/remote_reward")] == [400] * 3
        assert server.post("/moderate", body).status == 404
        assert KEY not in server.log.read_text()


@pytest.mark.slow
def test_without_a_key_only_this_machine_is_served(folders: list[Path], tmp_path: Path) -> None:
    done = subprocess.run(
        command("scripts/serve.py", "--model", folders[0], "--host", "0.0.0.0"),
        capture_output=True, text=True, env=environment(), timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr.startswith("error: host: 0.0.0.0")
    assert done.stderr.count("\n") == 1
    (tmp_path / "fastapi.py").write_text("raise ModuleNotFoundError(\"No module named 'fastapi'\", name='fastapi')")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        command("scripts/serve.py", "--model", folders[0]),
        capture_output=True, text=True, env=environment(PYTHONPATH=path), timeout=120, check=False,
    )  # fmt: skip
    assert done.stderr == (
        "error: the server needs fastapi, which is not installed; run pip install 'safe_rlhf_video[serve]'\n"
    )


@pytest.mark.slow
def test_a_full_queue_and_late_answers(folders: list[Path], root: Path, tmp_path: Path) -> None:
    # A clip that is alone waits for a second: that keeps the one place of the queue.
    arguments = ("--model", *folders[:1], "--video_root", root, "--workers", 1, "--batch_wait_ms", 1000)
    with running_server(tmp_path, *arguments, "--queue_size", 1) as server:
        server.post("/score", score_of())  # starts the decoding process
        with ThreadPoolExecutor(8) as threads:
            answers = list(threads.map(lambda _: server.post("/score", score_of()), range(8)))
        assert sorted({answer.status for answer in answers}) == [200, 429]
        for answer in answers:
            if answer.status == 429:
                assert "1 requests" in answer.error
                assert int(answer.headers["retry-after"]) >= 1
        assert server.post("/score", score_of()).status == 200

    with running_server(tmp_path, *arguments, "--timeout_s", 0.6) as server:
        for _ in range(3):
            started_s = time.monotonic()
            answer = server.post("/score", score_of())
            assert (answer.status, "0.6 s" in answer.error) == (503, True), answer
            assert time.monotonic() - started_s < 5
            time.sleep(1.0)  # else the batch that the last one began would take the next one along
        # A body that does not come on.
        head = (
            b"POST /score HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n"
        )
        assert server.send_raw(head + b'{"prompt"').startswith(b"HTTP/1.1 503")
        assert server.get("/healthz").status == 200
        assert 'status="503"} 4' in server.get("/metrics").content.decode()


@pytest.mark.slow
def test_a_client_that_leaves_is_not_worked_for(folders: list[Path], root: Path, tmp_path: Path) -> None:
    arguments = ("--model", *folders[:1], "--video_root", root, "--workers", 1, "--batch_wait_ms", 1000)
    with running_server(tmp_path, *arguments, "--queue_size", 3) as server:
        server.post("/score", score_of())
        scored = b"safe_rlhf_video_batch_clips_sum 1"
        assert scored in server.get("/metrics").content
        content = json.dumps(score_of()).encode()
        for _ in range(3):
            connection = http.client.HTTPConnection("127.0.0.1", server.port)
            connection.request("POST", "/score", content, {"Content-Type": "application/json"})
            time.sleep(0.3)
            connection.close()
        time.sleep(1.5)
        metrics = server.get("/metrics").content
        assert scored in metrics
        assert b'requests_total{route="/score",status="499"} 3' in metrics
        assert b"safe_rlhf_video_queue_requests 0" in metrics


def wait_until_nobody_listens(server: RunningServer) -> None:
    try:
        while True:
            assert server.get("/healthz").status in (200, 503)
            time.sleep(0.05)
    except ConnectionError:
        pass


@pytest.mark.slow
@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_after_its_work(folders: list[Path], root: Path, tmp_path: Path, sent: int) -> None:
    arguments = ("--model", *folders[:2], "--video_root", root, "--workers", 2, "--batch_wait_ms", 1000)
    with running_server(tmp_path, *arguments, as_users_do=True) as server:
        assert isinstance(server.process, subprocess.Popen)
        server.post("/rank", {"prompt": PROMPT, "videos": [{"path": f"{number}.mp4"} for number in range(4)]})
        children = children_of(server.process.pid)
        assert children
        waiting = socket.create_connection(("127.0.0.1", server.port))  # in the middle of its body
        content = json.dumps(score_of()).encode()
        head = (
            b"POST /score HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
        )
        waiting.sendall(head % len(content) + content[:10])
        with ThreadPoolExecutor(4) as threads:
            answers = [threads.submit(server.upload, "/score", [("prompt", PROMPT), ("video", root / "0.mp4")])
                       for _ in range(4)]  # fmt: skip
            time.sleep(0.4)
            server.process.send_signal(sent)
            wait_until_nobody_listens(server)
            waiting.sendall(content[10:])
            assert waiting.recv(4096).startswith(b"HTTP/1.1 503")
            assert [answer.result().status for answer in answers] == [200] * 4
        assert server.process.wait(30) == 0
        assert server.printed.read_text().splitlines()[1:] == ["ended"]
        assert not any(map(is_running, children))
        assert list((tmp_path / "tmp").iterdir()) == []
        assert server.log.read_text() == ""


@pytest.mark.slow
def test_work_that_does_not_end_in_time_is_answered(folders: list[Path], root: Path, tmp_path: Path) -> None:
    arguments = ("--model", *folders[:1], "--video_root", root, "--workers", 1, "--batch_wait_ms", 1000)
    with running_server(tmp_path, *arguments, "--shutdown_s", 0.2) as server:
        server.post("/score", score_of())
        with ThreadPoolExecutor(1) as threads:
            answer = threads.submit(server.post, "/score", score_of())
            time.sleep(0.3)
            assert server.end() == 0
            assert (answer.result().status, "shutting down" in answer.result().error) == (503, True)


@pytest.mark.slow
def test_scores_that_are_not_finite_stay_inside(folders: list[Path], root: Path, tmp_path: Path) -> None:
    diverged = write_model(tmp_path / "diverged", REWARD)
    rewrite_heads(diverged, lambda heads: [one.fill_(torch.nan) for one in heads.values()])
    with running_server(tmp_path, "--model", diverged, folders[1], "--video_root", root) as server:
        for path, body in (
            ("/score", score_of()),
            ("/rank", {"prompt": PROMPT, "videos": [{"path": "0.mp4"}, {"path": "1.mp4"}]}),
        ):
            answer = server.post(path, body)
            assert (answer.status, "not finite" in answer.error) == (503, True), answer
        assert server.get("/healthz").status == 200
        assert PROMPT not in server.log.read_text()


@pytest.mark.slow
def test_slow_and_silent_clients_lose_their_place(server: RunningServer) -> None:
    connections = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(20)]
    for place, connection in enumerate(connections):
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nX-Slow: "[: 3 * place])
    ended = threading.Event()

    def drip() -> None:
        while not ended.wait(1.0):
            for connection in connections[10:]:
                try:
                    connection.sendall(b"a")
                except OSError:
                    return

    dripping = threading.Thread(target=drip)
    dripping.start()
    try:
        assert server.get("/healthz").status == 200
        for connection in connections:
            connection.settimeout(40)
            try:
                while connection.recv(4096):
                    pass
            except ConnectionError:
                pass
    finally:
        ended.set()
        dripping.join()
        for connection in connections:
            connection.close()
    assert server.post("/score", score_of()).status == 200
