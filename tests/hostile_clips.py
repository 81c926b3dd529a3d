"""Clips that would have a decoder open other files and addresses, and a watch that sees whether a file is opened."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from clips import write_clip
from PIL import Image

_C = ctypes.CDLL(None, use_errno=True)
_IN_OPEN = 0x20


class Watch:
    """Sees when any process opens a file (inotify, so Linux only)."""

    def __init__(self, path: Path) -> None:
        self._events = _C.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        assert self._events >= 0
        assert _C.inotify_add_watch(self._events, os.fsencode(path), _IN_OPEN) >= 0

    def was_opened(self) -> bool:
        """Whether the file was opened since the last time this was asked."""
        with contextlib.suppress(BlockingIOError):
            return bool(os.read(self._events, 1 << 16))
        return False


@contextlib.contextmanager
def tricks_with_bait(base: Path) -> Iterator[tuple[list[Path], Callable[[object], None]]]:
    """Writes the tricks; yields their paths, and what fails with a name if any opened another file since it was asked.

    At the end it fails if anything has asked for an address.
    """
    bait, picture = base / "bait.ts", base / "bait1.png"
    write_clip(bait, seed=3)
    Image.new("RGB", (64, 48)).save(picture)
    stream, clip = write_clip(base / "own.ts"), write_clip(base / "own.mp4")
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket(type=socket.SOCK_DGRAM) as datagrams:
        port = listener.getsockname()[1]
        datagrams.bind(("127.0.0.1", port))
        tricks = _write_tricks(base / "tricks", bait, picture, port, clip.read_bytes(), stream.read_bytes())
        watches = [Watch(bait), Watch(picture)]
        bait.open().close()
        assert watches[0].was_opened()

        def check(name: object) -> None:
            assert not any(watch.was_opened() for watch in watches), name

        yield tricks, check
        listener.setblocking(False)
        datagrams.setblocking(False)
        with pytest.raises(BlockingIOError):
            listener.accept()
        with pytest.raises(BlockingIOError):
            datagrams.recv(1)


def _write_tricks(folder: Path, bait: Path, picture: Path, port: int, clip: bytes, stream: bytes) -> list[Path]:
    """Files that make some version of FFmpeg open something else.

    Args:
        bait: a clip that none of them may open.
        picture: a file whose name ends in 1.png, which none may open either.
        port: on loopback, of TCP and UDP alike.
        clip: a whole mp4.
        stream: a whole MPEG-TS. With a text before it, some versions see the stream and others the text.
    """
    folder.mkdir()
    playlist = "#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:2.0,\n{}\n#EXT-X-ENDLIST\n#"
    texts = {
        "playlist": playlist.format(bait),
        "relative": playlist.format(f"../{bait.name}"),
        "remote": playlist.format(f"http://127.0.0.1:{port}/bait.ts"),
        "master": f"#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\n{folder}/playlist.mp4\n#",
        "key": f'#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXT-X-KEY:METHOD=AES-128,URI="{bait}"\n#EXTINF:2.0,\n{bait}\n#',
        "concat": f"ffconcat version 1.0\nfile '{bait}'\n#",
        "joined": f"ffconcat version 1.0\nfile 'concat:{bait}|{bait}'\n#",
        "part": f"ffconcat version 1.0\nfile 'subfile,,start,0,end,0,,:{bait}'\n#",
        "session": f"v=0\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {port} RTP/AVP 96\na=rtpmap:96 H264/90000\n",
        "subtitles": "# VobSub index file, v7\nsize: 720x480\nid: en, index: 0\ntimestamp: 00:00:01:000, filepos: 0\n",
        "manifest": (
            '<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" profiles="urn:mpeg:dash:profile:isoff-on-demand:2011"><Period>'
            '<AdaptationSet mimeType="video/mp4"><Representation id="1" bandwidth="1">'
            f"<BaseURL>{bait}</BaseURL></Representation></AdaptationSet></Period></MPD>\n"
        ),
        "composition": f'<AssetMap xmlns="http://www.smpte-ra.org/schemas/429-9/2007/AM"><Path>{bait}</Path></AssetMap>',
    }
    contents = {f"{name}.mp4": text.encode() for name, text in texts.items()}
    contents |= {f"{name}_stream.mp4": text.encode() + stream for name, text in texts.items()}
    contents |= {f"stream_{name}.mp4": stream + b"\n" + text.encode() for name, text in texts.items()}
    contents |= {
        f"{name}{ending}": texts[name].encode() for name, ending in [("playlist", ".m3u8"), ("session", ".sdp")]
    }
    contents["alias.mov"] = _with_alias(clip, bait)
    paths = []
    for name, content in contents.items():
        paths.append(folder / name)
        paths[-1].write_bytes(content)
    for name in (str(picture).replace("1.png", "%d.png"), str(picture).replace("1.png", "%01d.png")):
        paths.append(Path(name))  # a pattern for pictures
        paths[-1].write_bytes(clip)
    (folder / "subtitles.sub").symlink_to(bait)  # what the index of subtitles stands for
    return paths


def _with_alias(clip: bytes, target: Path) -> bytes:
    """An mp4 whose frames are in another file, as an alias of QuickTime says."""
    name = os.fsencode(target)
    place = struct.pack(">HH", 2, len(name)) + name + bytes(len(name) % 2) + struct.pack(">HH", 0xFFFF, 0)
    record = bytes(150) + place
    entry = struct.pack(">I4sI", 12 + len(record), b"alis", 0) + record
    start = clip.index(b"dref") + 12
    length = int.from_bytes(clip[start : start + 4], "big")
    changed = bytearray(clip)
    changed[start : start + length] = entry
    for box in (b"moov", b"trak", b"mdia", b"minf", b"dinf", b"dref"):
        head = clip.index(box) - 4
        size = int.from_bytes(clip[head : head + 4], "big") + len(entry) - length
        changed[head : head + 4] = size.to_bytes(4, "big")
    return bytes(changed)
