"""What people who run the reward server need: several keys, request ids, an access log, health and readiness."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from clips import write_clip
from fastapi import HTTPException
from running_server import Answer, RunningServer, in_json, running_server
from small_models import REWARD, one_line, write_model

from safe_rlhf_video.errors import ConfigError, DecoderError
from safe_rlhf_video.serving.access_log import Access, AccessLog, name_request
from safe_rlhf_video.serving.keys import KeyRing
from safe_rlhf_video.serving.request_clips import ClipReader
from safe_rlhf_video.serving.reward_server import _warn
from safe_rlhf_video.serving.server_metrics import ServerMetrics
from safe_rlhf_video.serving.settings import ServerSettings
from safe_rlhf_video.video.sampling import Sampling

KEY = "correct-horse-battery-staple"
OTHER = "another-horse-battery-staple"
PROMPT = "a prompt that belongs in no log"


def settings_of(file: Path | None = None, **values: Any) -> ServerSettings:
    return ServerSettings(model=("model",), api_key_file=file, **values)


def test_keys_of_several_clients(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"{KEY}\n")
    keys = KeyRing(settings_of(file, host="0.0.0.0"))
    assert (len(keys), keys.find(KEY)) == (1, "key-1")
    assert [keys.find(wrong) for wrong in (OTHER, "", "\xff")] == [None] * 3
    file.write_text(f"# trainers\n\n{KEY}  alice\n{OTHER}\n")
    assert keys.find(OTHER) is None
    keys.reload()
    assert (keys.find(KEY), keys.find(OTHER)) == ("alice", "key-4")
    for content, part in (
        ("# none\n\n", "holds no key"),
        ("short\n", "line 1 needs 16"),
        (f"{KEY}\n{KEY}\n", "line 2: the key or the name stands"),
        (f"{KEY} a\n{OTHER} a\n", "line 2: the key or the name stands"),
        (f"{KEY} two names\n", "expected KEY or KEY NAME"),
        (f"{KEY} na/me\n", "expected KEY or KEY NAME"),
        ("ä" * 20, "cannot be read as ASCII"),
    ):
        file.write_text(content)
        with pytest.raises(ConfigError, match=part) as caught:
            keys.reload()
        assert KEY not in str(caught.value)
        assert "\n" not in str(caught.value)
        assert keys.find(KEY) == "alice"  # as before
    with one_line(ConfigError, "api_key_file"):
        KeyRing(settings_of(tmp_path / "none"))
    one = KeyRing(settings_of(api_key=KEY))
    assert (one.find(KEY), one.is_needed, one.is_exposed) == ("key", True, False)
    assert not KeyRing(settings_of()).is_needed


def test_warnings_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "keys"
    file.write_text(KEY)

    def warnings(user: int, mode: int, settings: ServerSettings) -> list[str]:
        caplog.clear()
        file.chmod(mode)
        monkeypatch.setattr(os, "geteuid", lambda: user)
        _warn(settings, KeyRing(settings))
        return [record.getMessage().split()[0] for record in caplog.records]

    assert warnings(1000, 0o600, settings_of(file)) == []
    assert warnings(1000, 0o640, settings_of(file)) == []
    assert warnings(1000, 0o644, settings_of(file)) == ["api_key_file:"]
    assert warnings(0, 0o600, settings_of(file)) == ["runs"]
    assert warnings(0, 0o644, settings_of()) == []  # only this machine reaches it


def test_request_ids_and_a_log_that_cannot_be_written(tmp_path: Path) -> None:
    assert name_request("trace-1:a.b_c~") == "trace-1:a.b_c~"
    for wrong in (None, "", "a b", "a\nb", "a" * 65, 'a"', "é"):
        made = name_request(wrong)
        assert made != wrong
        assert name_request(made) == made
    log = AccessLog(Path("/dev/full"))
    access = Access("id", "client", "127.0.0.1", "B\nREW", "/score", 200, 0.5)
    log.write(access)
    assert log.num_lost == 1
    log = AccessLog(tmp_path / "log")
    log.write(access)
    (tmp_path / "log").rename(tmp_path / "log.1")
    log.write(access)
    for name in ("log", "log.1"):
        line = json.loads((tmp_path / name).read_text())
        assert (line["method"], line["status"], line["time"][-6:]) == ("other", 200, "+00:00")
    with one_line(ConfigError, "access_log"):
        AccessLog(tmp_path)
    AccessLog(None).write(access)


def test_readiness_starts_a_decoder_and_says_if_none_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    async def ask(break_it: Callable[[ClipReader], None]) -> tuple[bool, str]:
        reader = ClipReader(settings_of(workers=1), Sampling(), ServerMetrics())
        break_it(reader)
        try:
            await reader.require_decoder()
            return reader._pool.is_started, ""
        except HTTPException as error:
            return reader._pool.is_started, f"{error.status_code} {error.detail}"
        finally:
            reader.close()

    def fail(reader: ClipReader) -> None:
        def start() -> None:
            raise DecoderError("a decoding process did not start")

        monkeypatch.setattr(reader._pool, "_worker", start)

    def hang(reader: ClipReader) -> None:
        monkeypatch.setattr("safe_rlhf_video.serving.request_clips.START_S", 0.05)
        monkeypatch.setattr(reader._pool, "_worker", lambda: time.sleep(0.5))

    assert asyncio.run(ask(lambda reader: None)) == (True, "")
    assert asyncio.run(ask(fail)) == (False, "503 no decoding process starts; the server's log may say why")
    assert asyncio.run(ask(hang)) == (False, "503 no decoding process has started within 0.05 s")


def test_a_server_with_two_keys_and_an_access_log(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", REWARD)
    clip = write_clip(tmp_path / "0.mp4", 5)
    keys, log = tmp_path / "keys", tmp_path / "access.log"
    keys.write_text(f"{KEY} alice\n{OTHER} bob\n")
    keys.chmod(0o644)
    body = {"prompt": PROMPT, "video": in_json(clip)}
    arguments = ("--model", model, "--api_key_file", keys, "--access_log", log, "--client_clips_per_minute", 2)
    with running_server(tmp_path, *arguments) as server:

        def ask(key: str, method: str, path: str, **headers: str) -> Answer:
            content = json.dumps(body).encode() if method == "POST" else None
            kind = {"Content-Type": "application/json", "X-API-Key": key}
            return server.ask(method, path, content, {**kind, **{"X-Request-ID": "mine-1", **headers}})

        for path in ("/healthz", "/readyz"):
            assert ask("", "HEAD", path).content == b""
            answer = ask("", "HEAD", path)
            assert (answer.status, answer.headers["x-request-id"]) == (200, "mine-1")
            assert ask("", "GET", path).status == 200
        statuses = [ask(key, "POST", "/score").status for key in (KEY, KEY, KEY, OTHER, "wrong")]
        assert statuses == [200, 200, 429, 200, 401]
        strange = ask(OTHER, "GET", "/none/a-secret", **{"X-Request-ID": "two words"})
        assert strange.headers["x-request-id"] != "two words"
        wait_for(log, '"status": 404')  # a line follows its answer
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        assert [(one["client"], one["status"]) for one in lines[-6:]] == [
            ("alice", 200), ("alice", 200), ("alice", 429), ("bob", 200), ("127.0.0.1", 401), ("bob", 404),
        ]  # fmt: skip
        assert lines[-2]["id"] == "mine-1"
        assert lines[-1]["id"] == strange.headers["x-request-id"]
        assert lines[-1]["route"] == "other"
        kept = log.read_text() + server.log.read_text()
        assert not [part for part in (KEY, OTHER, PROMPT, "a-secret") if part in kept]
        metrics = ask(OTHER, "GET", "/metrics").content.decode()
        assert 'client_requests_total{client="alice"} 3' in metrics
        assert 'refused_total{limit="quota"} 1' in metrics
        assert "api_key_file: all users of this machine can read" in server.log.read_text()

        keys.write_text(f"{OTHER} bob\n")
        reload(server, "1 keys")
        assert [ask(key, "GET", "/model").status for key in (KEY, OTHER)] == [401, 200]
        keys.write_text("short\n")
        reload(server, "the keys are those from before")
        assert ask(OTHER, "GET", "/model").status == 200


def reload(server: RunningServer, message: str) -> None:
    server.process.send_signal(signal.SIGHUP)
    wait_for(server.log, message)


def wait_for(log: Path, text: str) -> None:
    deadline = time.monotonic() + 20
    while text not in log.read_text():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)
