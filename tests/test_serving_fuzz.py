"""Sends thousands of bad requests: no status of 500 or above but 503, no crash, no file outside the root is read."""

from __future__ import annotations

import base64
import json
import random
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from clips import write_clip
from running_server import RunningServer, encode_parts, running_server
from small_models import write_reward_and_cost

from safe_rlhf_video.scoring.scorer import Scorer

NUM_REQUESTS = 2000
SCORING = ("/score", "/score_pair", "/rank", "/moderate", "/remote_reward")
ROUTES = (*SCORING, "/model", "/healthz", "/metrics", "/page/x", "/")
STRANGE: tuple[Any, ...] = (
    None, True, False, 0, -1, 10**30, 1e300, -0.0, "", " ", "\0", "\ud800", "a" * 9000, "🐟" * 400, [], {}, [[]],
    {"": ""}, {"path": {"path": "0.mp4"}}, {"data": []}, "NaN", ["0.mp4"] * 90,
)  # fmt: skip
RAW_NUMBERS = (b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1e999", b"9" * 5000, b"0x10", b"1_0", b".5", b"01")
METHODS = ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "QUERY", "post")


class Fuzz:
    """Makes bad requests and sends them; each method returns the answer as bytes, from the status line on."""

    def __init__(self, server: RunningServer, root: Path, canary: Path, seed: int) -> None:
        self.random = random.Random(seed)
        self.server = server
        self.clip = (root / "0.mp4").read_bytes()
        self.outside = [
            "../canary.mp4", "sub/../../canary.mp4", "link.mp4", "out/canary.mp4", str(canary), f"/{canary}",
            f"./../{canary.parent.name}/canary.mp4", f"file:{canary}", f"file://{canary}", f"concat:{canary}",
            f"subfile,,start,0,end,0,,:{canary}", "sub/../out/./canary.mp4", f"/proc/self/root{canary}",
            f"../../../../../../../../..{canary}", "out/root/../canary.mp4", "link.mp4\0.mp4", "..\\canary.mp4", "~",
            "out", "/proc/self/environ", "/dev/zero", "zero.mp4", "pipe.mp4", "playlist.m3u8", "concat.txt",
        ]  # fmt: skip

    def send(self) -> bytes:
        kinds: tuple[Callable[[], bytes], ...] = (
            self.wrong_field, self.outside_path, self.broken_json, self.broken_parts, self.broken_clip, self.garbage,
            self.head,
        )  # fmt: skip
        return self.random.choice(kinds)()

    def post(self, route: str, content: bytes, kind: str = "application/json") -> bytes:
        head = f"POST {route} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\n"
        if self.random.random() < 0.2:  # in chunks
            size = self.random.choice((1 << 16, 700))
            chunks = [content[start : start + size] for start in range(0, len(content), size)]
            body = b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
            head += "Transfer-Encoding: chunked\r\n"
        else:
            body = content
            head += f"Content-Length: {len(content)}\r\n"
        return self.server.send_raw(f"{head}Connection: close\r\n\r\n".encode() + body)

    def good(self, route: str) -> dict[str, Any]:
        video = {"path": "0.mp4"}
        return {
            "/score": {"prompt": "a", "video": video},
            "/moderate": {"prompt": "a", "video": video},
            "/score_pair": {"prompt": "a", "v1": video, "v2": video, "lagrange_multiplier": 1, "cost_limit": 0},
            "/rank": {"prompt": "a", "videos": [video, video], "lagrange_multiplier": 1, "cost_limit": 0},
            "/remote_reward": {"prompts": ["a"], "query": ["0.mp4"], "labels": [""]},
        }[route]

    def scoring_route(self) -> str:
        return self.random.choice(SCORING)

    def wrong_field(self) -> bytes:
        route = self.scoring_route()
        fields = json.loads(json.dumps(self.good(route)))
        target, name = fields, self.random.choice([*fields, "extra", ""])
        if isinstance(fields.get(name), dict) and self.random.random() < 0.5:
            target, name = fields[name], self.random.choice(["path", "data", "x"])
        elif isinstance(fields.get(name), list) and self.random.random() < 0.5:
            target, name = fields[name], 0
        if self.random.random() < 0.3 and isinstance(target, dict):
            target.pop(name, None)
            target["other"] = 1
        else:
            target[name] = self.random.choice(STRANGE)
        return self.post(route, json.dumps(fields).encode())

    def outside_path(self) -> bytes:
        route = self.scoring_route()
        path = json.dumps(self.random.choice(self.outside))
        text = json.dumps(self.good(route)).replace('"0.mp4"', path)
        return self.post(route, text.encode())

    def broken_json(self) -> bytes:
        content = bytearray(json.dumps(self.good(self.scoring_route())).encode())
        kind = self.random.randrange(5)
        if kind == 0:
            for _ in range(self.random.randint(1, 5)):
                content[self.random.randrange(len(content))] = self.random.randrange(256)
        elif kind == 1:
            del content[self.random.randrange(len(content)) :]
        elif kind == 2:
            content = bytearray(b'{"prompt": "a", "v1": {"path": "0.mp4"}, "v2": {"path": "0.mp4"}, "cost_limit": %s}'
                                % self.random.choice(RAW_NUMBERS))  # fmt: skip
        elif kind == 3:
            content = bytearray(self.random.choice((b"[", b'{"a":', b'[{"prompt":')) * self.random.choice((50, 50_000)))
        else:
            content = bytearray(
                self.random.choice((content.decode().encode("utf-16"), b"\xef\xbb\xbf" + content, b"\0" * 99))
            )
        return self.post(self.scoring_route(), bytes(content))

    def broken_parts(self) -> bytes:
        names = [
            "prompt",
            "video",
            "v1",
            "v2",
            "videos",
            "lagrange_multiplier",
            "cost_limit",
            "other",
            "",
            '"; x="',
            "a" * 3000,
        ]
        values: list[str | bytes] = [
            "a",
            "nan",
            "",
            "../canary.mp4",
            "\0",
            self.clip,
            b"",
            b"x" * 3000,
            '{"path": "0.mp4"}',
        ]
        chosen = [(self.random.choice(names), self.random.choice(values)) for _ in range(self.random.randrange(6))]
        content, kind = encode_parts(chosen)
        changed = bytearray(content)
        for _ in range(self.random.choice((0, 0, 1, 8))):
            changed[self.random.randrange(len(changed))] = self.random.randrange(256)
        if self.random.random() < 0.3:
            del changed[self.random.randrange(len(changed)) :]
        if self.random.random() < 0.3:
            kind = self.random.choice(
                (f"{kind}x", "multipart/form-data", f"{kind}; charset=utf-7", 'multipart/form-data; boundary="')
            )
        return self.post(self.scoring_route(), bytes(changed), kind)

    def broken_clip(self) -> bytes:
        clip = bytearray(self.clip)
        kind = self.random.randrange(3)
        if kind == 0:
            for _ in range(self.random.choice((1, 20, 500))):
                clip[self.random.randrange(len(clip))] = self.random.randrange(256)
        elif kind == 1:
            del clip[self.random.randrange(len(clip)) :]
        else:  # what FFmpeg would take for a list of other files
            clip = bytearray(self.random.choice((
                b"#EXTM3U\n#EXTINF:1,\nfile://%s\n", b"ffconcat version 1.0\nfile '%s'\n", b"RIFF%s", b"<MPD>%s</MPD>",
            )) % self.outside[4].encode())  # fmt: skip
        if self.random.random() < 0.5:
            content, multipart = encode_parts([("prompt", "a"), ("video", bytes(clip))])
            return self.post("/score", content, multipart)
        field = {"data": base64.b64encode(clip).decode()}
        return self.post("/score", json.dumps({"prompt": "a", "video": field}).encode())

    def garbage(self) -> bytes:
        content = self.random.choice((
            self.random.randbytes(self.random.choice((1, 60, 5000))),
            b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 20_000,
            b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n",
            b"POST /score HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n{}",
            b"POST /score HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            b"POST /score HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n",
            b"POST /score HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 5\r\n\r\n{",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
            b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
            b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n" * 50 + b"GARBAGE\r\n\r\n",
        ))  # fmt: skip
        return self.server.send_raw(content, is_end=True)

    def head(self) -> bytes:
        target = self.random.choice(
            (*ROUTES, "/docs?x=%00", "/page/../../canary.mp4", "/page/%2e%2e%2f%2e%2e%2fcanary.mp4", "//etc/passwd",
             "*", "/%ff%00", "http://elsewhere/score", "/score/", "/SCORE", "/page/" + "../" * 50 + "etc/passwd")
        )  # fmt: skip
        name = self.random.choice(
            ("X", "Host", "Origin", "Content-Type", "Authorization", "X-API-Key", "Expect", "Range")
        )
        value = self.random.choice(
            ("", "\xff", "a" * 5000, "null", "localhost", "100-continue", "evil.example", "bytes=0-")
        )
        lines = [
            f"{self.random.choice(METHODS)} {target} HTTP/1.{self.random.choice('01')}",
            "Host: localhost",
            f"{name}: {value}",
        ]
        return self.server.send_raw("\r\n".join([*lines, "Connection: close", "", ""]).encode("latin-1"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_fuzzed_requests_leave_the_server_up(tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    write_clip(root / "0.mp4", 5)
    canary = write_clip(tmp_path / "canary.mp4", 7, seed=99)
    (root / "link.mp4").symlink_to(canary)
    (root / "out").symlink_to(tmp_path)
    (root / "zero.mp4").symlink_to("/dev/zero")
    (root / "playlist.m3u8").write_text(f"#EXTM3U\n#EXTINF:1,\nfile://{canary}\n")
    (root / "concat.txt").write_text(f"ffconcat version 1.0\nfile '{canary}'\n")
    folders = write_reward_and_cost(tmp_path)
    with Scorer.from_pretrained(*folders, device="cpu", workers=1) as scorer:
        good, secret = (scorer.score("a", clip) for clip in (root / "0.mp4", canary))
    assert abs(good["reward"] - secret["reward"]) > 1e-3

    arguments = ("--video_root", root, "--workers", 1, "--max_body_mb", 2, "--timeout_s", 20, "--max_videos", 8)
    with running_server(tmp_path, "--model", *folders, *arguments) as server:
        fuzz = Fuzz(server, root, canary, seed=6)
        statuses: Counter[str] = Counter()
        for number in range(NUM_REQUESTS):
            answer = fuzz.send()
            found = re.findall(rb"(?:^|\n|\})HTTP/1\.1 (\d{3})", answer)
            statuses.update(one.decode() for one in found or [b"none"])
            assert all(one < b"500" or one == b"503" for one in found), (number, answer)
            for value in map(float, re.findall(rb"-?\d+\.\d{4,}", answer)):
                assert min(abs(value - score) for score in secret.values()) > 1e-5, (number, answer)
            for message in re.findall(rb'\{"error": ?(".*?")\}$', answer):
                assert "\n" not in json.loads(message), (number, answer)
                assert str(tmp_path).encode() not in message.replace(str(canary).encode(), b""), (number, answer)
            assert server.process.poll() is None, (number, server.log.read_text())
            if number % 100 == 99:
                scores = server.post("/score", {"prompt": "a", "video": {"path": "0.mp4"}}).value["scores"]
                assert scores == pytest.approx(good, abs=1e-5)
        print(dict(statuses))
        assert {"200", "400", "403", "404", "405"} <= statuses.keys()
        assert list((tmp_path / "tmp").glob("safe_rlhf_video-uploads-*/*")) == []
        assert server.log.read_text() == ""
