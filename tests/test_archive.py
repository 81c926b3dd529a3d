"""Archives of clips: what is whole comes out byte for byte, what is damaged or hostile is refused in one line."""

from __future__ import annotations

import gzip
import io
import os
import random
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from safe_rlhf_video.data.sources import archive as archive_module
from safe_rlhf_video.data.sources.archive import ExtractReport, extract_clips, iterate_clips
from safe_rlhf_video.errors import ConfigError, SampleError

CLIPS = {
    f"{'p' * 60}{prompt}/{'v' * 60}{video}": random.Random(prompt * 10 + video).randbytes(700 + 511 * video)
    for prompt in range(3)
    for video in range(4)
}
Member = tuple[tarfile.TarInfo, bytes]


def clip_members(clips: dict[str, bytes] = CLIPS, prefix: str = "videos/") -> list[Member]:
    return [file_member(f"{prefix}{name}.mp4", content) for name, content in clips.items()]


def file_member(name: str, content: bytes = b"clip") -> Member:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    return info, content


def odd_member(name: str, kind: bytes, target: str = "") -> Member:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info, b""


def pack(members: list[Member], form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def read_all(archive: Path, folder: Path, **options: object) -> dict[str, bytes]:
    """What a consumer gets; it deletes each file, and then nothing may be left."""
    clips = {}
    for name, path in iterate_clips(archive, folder, **options):  # type: ignore[arg-type]
        assert path.parent == folder
        clips[name] = path.read_bytes()
        path.unlink()
    assert not folder.exists() or not list(folder.iterdir())
    return clips


def tree(folder: Path) -> dict[str, tuple[int, bytes | None]]:
    """Everything below a folder, links not followed."""
    found = {}
    for path in sorted(folder.rglob("*")):
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else None
        found[str(path.relative_to(folder))] = (path.lstat().st_mode, content)
    return found


def refused(archive: Path, folder: Path, **options: object) -> str:
    """The message of an archive that is refused; nothing may be left of it, nor any file elsewhere."""
    folder.mkdir(exist_ok=True)
    before = tree(archive.parent)
    with pytest.raises(SampleError) as caught:
        read_until_refused(archive, folder, [], **options)
    message = str(caught.value)
    assert "\n" not in message
    assert str(archive) in message
    assert tree(archive.parent) == before
    return message


def read_until_refused(archive: Path, folder: Path, names: list[str], **options: object) -> None:
    for name, path in iterate_clips(archive, folder, **options):  # type: ignore[arg-type]
        if name in CLIPS and not options:
            assert path.read_bytes() == CLIPS[name] or archive.name == "checksum.tar.gz"
        path.unlink()
        names.append(name)


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("prefix", ["videos/", "./videos/"])
def test_clips_come_out_whole_and_in_order(tmp_path: Path, form: int, prefix: str) -> None:
    members = [file_member("README.md"), *clip_members(prefix=prefix), file_member("videos/notes.txt")]
    members.insert(3, odd_member("videos/p", tarfile.DIRTYPE))
    archive = write(tmp_path / "videos.tar.gz", gzip.compress(pack(members, form)))
    others: list[str] = []
    sizes: list[int] = []
    clips = read_all(archive, tmp_path / "out", on_other=others.append, on_bytes=sizes.append)
    assert clips == CLIPS
    assert list(clips) == list(CLIPS)
    assert others == ["README.md", "videos/notes.txt"]
    assert sum(sizes) == archive.stat().st_size
    chosen = list(CLIPS)[3:9:2]
    assert list(read_all(archive, tmp_path / "out", wanted=set(chosen))) == chosen
    assert read_all(write(tmp_path / "plain.tar", pack(members, form)), tmp_path / "out") == CLIPS


def test_archives_of_gnu_tar_and_a_pipe(tmp_path: Path) -> None:
    for name, content in CLIPS.items():
        path = tmp_path / "source" / "videos" / f"{name}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    archive = tmp_path / "videos.tar.gz"
    subprocess.run(["tar", "-czf", archive, "-C", tmp_path / "source", "videos"], check=True)
    assert read_all(archive, tmp_path / "out") == CLIPS
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with subprocess.Popen(["sh", "-c", f"cat '{archive}' > '{pipe}'"]):
        assert read_all(pipe, tmp_path / "out") == CLIPS


def test_consumer_that_stops_early_leaves_no_file(tmp_path: Path) -> None:
    archive = write(tmp_path / "videos.tar", pack(clip_members()))
    clips = iterate_clips(archive, tmp_path / "out")
    next(clips)[1].unlink()
    _, path = next(clips)
    assert path.exists()
    clips.close()
    assert not list((tmp_path / "out").iterdir())


HOSTILE: dict[str, tuple[Member, str]] = {
    "climbs": (file_member("videos/../../evil/a.mp4"), "lead out"),
    "climbs at the end": (file_member("videos/p/.."), "lead out"),
    "absolute": (file_member("/tmp/evil.mp4"), "lead out"),
    "backslash": (file_member("videos\\..\\..\\evil.mp4"), "lead out"),
    "symbolic link": (odd_member("videos/p/a.mp4", tarfile.SYMTYPE, "/etc/passwd"), "a symbolic link"),
    "link as folder": (odd_member("videos/p", tarfile.SYMTYPE, "/tmp"), "a symbolic link"),
    "hard link": (odd_member("videos/p/a.mp4", tarfile.LNKTYPE, "README.md"), "a hard link"),
    "device": (odd_member("videos/p/a.mp4", tarfile.CHRTYPE), "a character device"),
    "block device": (odd_member("dev", tarfile.BLKTYPE), "a block device"),
    "pipe": (odd_member("videos/p/a.mp4", tarfile.FIFOTYPE), "a named pipe"),
    "unknown type": (odd_member("videos/p/a.mp4", b"Z"), "unknown type"),
    "twice": (file_member(f"./videos//{next(iter(CLIPS))}.mp4"), "twice"),
    "long name": (file_member(f"videos/p/{'a' * 250}.mp4"), "at most 240"),
    "folder that climbs": (odd_member("../evil", tarfile.DIRTYPE), "lead out"),
    "dot": (file_member("videos/p/..mp4"), "'.' in place of a plain name"),
    "dots": (file_member("videos/p/...mp4"), "'..' in place of a plain name"),
    "control characters": (file_member("videos/p/a\n.mp4"), "control characters"),
    "two lines": (file_member("videos/p\nq/../a.mp4"), "lead out"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_member_is_refused(tmp_path: Path, kind: str) -> None:
    member, reason = HOSTILE[kind]
    content = pack([*clip_members(), member, file_member("videos/p/last.mp4")])
    for name, data in (("a.tar", content), ("a.tar.gz", gzip.compress(content))):
        message = refused(write(tmp_path / name, data), tmp_path / "out")
        assert reason in message, message
        assert f"member {member[0].name!r} " in message or len(member[0].name) > 200
        assert "not trusted" in message
    with pytest.raises(SampleError, match="not trusted"):
        extract_clips(tmp_path / "a.tar", tmp_path / "loose", progress=False)
    assert set(tree(tmp_path)) - {"a.tar", "a.tar.gz", "loose", "out"} == {
        f"loose/{part}" for name in CLIPS for part in (name.split("/")[0], f"{name}.mp4")
    }


@pytest.mark.parametrize(
    ("records", "reason"),
    [
        ({"path": "videos/../../evil.mp4"}, "lead out"),
        ({"path": "/evil.mp4"}, "lead out"),
        ({"path": "videos/p/a.mp4\0.txt"}, "lead out"),
        ({"size": "-512"}, "has a size of"),
        ({"size": "1_0"}, "has a size of"),
        ({"size": str(10**30)}, "more than"),
        ({"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "videos/p/b.mp4"}, "damaged"),
        ({"GNU.sparse.map": "0,4", "GNU.sparse.size": "4"}, "a sparse file"),
        ({"comment": "x" * 10_000}, "a header of"),
    ],
)
def test_pax_records_override_nothing_unchecked(tmp_path: Path, records: dict[str, str], reason: str) -> None:
    info, content = file_member("videos/p/a.mp4", b"c" * 600)
    info.pax_headers = records
    message = refused(write(tmp_path / "a.tar", pack([(info, content), *clip_members()])), tmp_path / "out")
    assert reason in message, message


def patched(block: bytes, **fields: bytes) -> bytes:
    """A header block with some fields replaced and the checksum made right again."""
    places = {"name": 0, "size": 124, "type": 156, "magic": 257}
    header = bytearray(block)
    for field, value in fields.items():
        header[places[field] : places[field] + len(value)] = value
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"size": b"\xff" * 11 + b"\x00"}, "a size of -256 bytes"),  # base 256, negative
        ({"size": b"\x80" + b"\x00" * 3 + b"\x7f" + b"\xff" * 7}, "more than"),  # base 256, 2**63 bytes
        ({"size": b"00077777777\0"}, "ends too early"),
        ({"size": b"zzzzzzzzzzz\0"}, "damaged"),
        ({"type": b"S"}, "a sparse file"),
        ({"type": b"L", "size": b"77777777777\0"}, "a header of"),
        ({"type": b"x", "size": b"77777777777\0"}, "a header of"),
        ({"type": b"g"}, ""),
    ],
)
def test_odd_headers(tmp_path: Path, fields: dict[str, bytes], reason: str) -> None:
    content = pack([file_member("videos/p/a.mp4", b"c" * 600), *clip_members()], tarfile.USTAR_FORMAT)
    damaged = patched(content[:512], **fields) + content[512:]
    path = write(tmp_path / "a.tar", damaged)
    if not reason:  # a global header that says nothing: the clips after it are untouched
        assert read_all(path, tmp_path / "out") == CLIPS
        return
    message = refused(path, tmp_path / "out")
    assert reason in message, message


def test_truncated_archives_say_how_many_clips_are_whole(tmp_path: Path) -> None:
    plain = pack(clip_members(), tarfile.USTAR_FORMAT)
    end = 512 * 12 + sum(-(-len(content) // 512) * 512 for content in CLIPS.values())  # where the end mark begins
    packed = gzip.compress(plain)
    cuts = random.Random(0)
    for content, last in ((plain, end), (packed, len(packed) - 1)):
        for length in [1, 2, 11, 512, last, *(cuts.randrange(last) for _ in range(25))]:
            path = write(tmp_path / "a.tar", content[:length])
            names: list[str] = []
            with pytest.raises(SampleError) as caught:
                read_until_refused(path, tmp_path / "out", names)
            assert f"ends too early, after {len(names)} whole clips" in str(caught.value)
            assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_wrong_checksum_says_that_clips_are_damaged(tmp_path: Path) -> None:
    stored = bytearray(gzip.compress(pack(clip_members()), compresslevel=0))
    stored[stored.index(CLIPS[list(CLIPS)[5]]) + 100] ^= 1  # inside a clip: nothing but the checksum can tell
    assert "its checksum is wrong" in refused(write(tmp_path / "checksum.tar.gz", bytes(stored)), tmp_path / "out")


def test_members_after_the_end_mark_are_not_lost_silently(tmp_path: Path) -> None:
    content = pack(clip_members())
    assert "more follows" in refused(write(tmp_path / "a.tar", content + content), tmp_path / "out")


def test_bombs_and_large_clips_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    large = write(tmp_path / "a.tar", pack([file_member("videos/p/a.mp4", b"x" * 5000)]))
    assert "more than 4999" in refused(large, tmp_path / "out", max_clip_bytes=4999)
    assert len(read_all(large, tmp_path / "out", max_clip_bytes=5000)) == 1
    monkeypatch.setattr(archive_module, "EXPANSION_SLACK_BYTES", 2**20)
    for name in ("README", "videos/p/a.mp4"):
        bomb = write(tmp_path / "b.tar.gz", gzip.compress(pack([file_member(name, bytes(2**24)), *clip_members()])))
        assert "100 times its size" in refused(bomb, tmp_path / "out")
    endless = write(tmp_path / "c.tar.gz", gzip.compress(pack(clip_members()) + bytes(2**24)))
    assert "100 times its size" in refused(endless, tmp_path / "out")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (pack([]), "holds no clip"),
        (pack([file_member("a.mp4"), file_member("videos/a.mp4"), file_member("videos/p/a.webm")]), r"\(3 other files"),
        (b"", "a.tar: is empty"),
        (gzip.compress(b"", mtime=0), "ends too early"),
        (b"not an archive at all" * 100, "damaged"),
        (b"\x1f\x8b" + b"not gzip" * 100, "damaged"),
        (b"BZh91AY&SY" + bytes(2000), "damaged"),
    ],
)
def test_what_is_no_archive_of_clips(tmp_path: Path, content: bytes, reason: str) -> None:
    with pytest.raises(SampleError, match=reason):
        read_all(write(tmp_path / "a.tar", content), tmp_path / "out")
    with pytest.raises(SampleError, match="/dev/null: is empty"):
        read_all(Path(os.devnull), tmp_path / "out")
    for missing in (tmp_path / "missing.tar", tmp_path):
        with pytest.raises(SampleError, match="cannot be read"):
            read_all(missing, tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written"):
        read_all(write(tmp_path / "b.tar", pack(clip_members())), tmp_path / "file" / "out")


def test_extraction_goes_on_and_never_leaves_its_folder(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    archive = write(
        tmp_path / "a.tar.gz", gzip.compress(pack([*clip_members(), file_member("README"), file_member("b.MP4")]))
    )
    folder = tmp_path / "videos"
    report = extract_clips(archive, folder)
    assert report == ExtractReport(written=len(CLIPS), already_there=0, others=2, first_other="README")
    assert {str(path.relative_to(folder))[:-4]: path.read_bytes() for path in folder.rglob("*.mp4")} == CLIPS
    assert "unpacking a.tar.gz: 100%" in capfd.readouterr().err
    first, second, third = (folder / f"{name}.mp4" for name in list(CLIPS)[:3])
    first.write_bytes(b"cut short")
    second.unlink()
    third.with_name(f".{third.name}.partial").write_bytes(b"of a run that was killed")
    third.unlink()
    report = extract_clips(archive, folder, progress=False)
    assert (report.written, report.already_there) == (3, len(CLIPS) - 3)
    assert {str(path.relative_to(folder))[:-4]: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == (
        CLIPS
    )
    outside = tmp_path / "outside"
    outside.mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / next(iter(CLIPS)).split("/")[0]).symlink_to(outside)
    with pytest.raises(SampleError, match="link that leads out"):
        extract_clips(archive, tmp_path / "other", progress=False)
    assert not list(outside.iterdir())


def test_full_disk_is_told_and_extraction_goes_on(tmp_path: Path) -> None:
    archive = write(tmp_path / "a.tar", pack(clip_members()))
    folder = tmp_path / "videos"
    script = (
        "import resource, sys; from pathlib import Path\n"
        "from safe_rlhf_video.data.sources.archive import extract_clips\n"
        "from safe_rlhf_video.errors import ConfigError\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1500, 1500))\n"
        "try: extract_clips(Path(sys.argv[1]), Path(sys.argv[2]), progress=False)\n"
        "except ConfigError as error: print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, archive, folder], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == (
        f"{folder}: cannot be written (File too large); free space or give another folder, then run it again\n"
    )
    whole = {str(path.relative_to(folder))[:-4]: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert whole == dict(list(CLIPS.items())[:2])  # of 700 and 1211 bytes
    report = extract_clips(archive, folder, progress=False)
    assert (report.written, report.already_there) == (len(CLIPS) - 2, 2)


def flip(rng: random.Random, content: bytearray) -> None:
    for _ in range(rng.randint(1, 4)):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)


def header_noise(rng: random.Random, content: bytearray) -> None:
    """Change a header's bytes and make its checksum right, so that the change is really reached."""
    start = rng.choice([at for at in range(0, len(content), 512) if content[at + 257 : at + 262] == b"ustar"])
    block = bytearray(content[start : start + 512])
    for _ in range(rng.randint(1, 3)):
        at = rng.choice([rng.randrange(100), rng.randrange(124, 136), 156, 156, rng.randrange(157, 512)])
        block[at] = rng.choice([0, 0x2E, 0x2F, 0x5C, 0x80, 0xFF, *b"012345678gxLKSDN", rng.randrange(256)])
    content[start : start + 512] = patched(bytes(block))


def cut_out(rng: random.Random, content: bytearray) -> None:
    start = rng.randrange(len(content))
    del content[start : start + rng.choice([1, 512, rng.randrange(1, 4000)])]


def copy_block(rng: random.Random, content: bytearray) -> None:
    source, target = (rng.randrange(len(content) // 512) * 512 for _ in range(2))
    content[target : target + 512] = content[source : source + 512]


@pytest.mark.parametrize("mutate", [flip, header_noise, cut_out, copy_block])
def test_mutated_archives(tmp_path: Path, mutate: Callable[[random.Random, bytearray], None]) -> None:
    """An error of one line, or clips that lie in the archive as they came out; never a file elsewhere."""
    rng = random.Random(mutate.__name__)
    inner = tmp_path / "inner"
    inner.mkdir()
    for number in range(30):
        form = rng.choice([tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
        content = bytearray(pack([file_member("README"), *clip_members()], form))
        mutate(rng, content)
        archive = write(inner / "a.tar", bytes(content))
        found, message = {}, str(archive)
        try:
            found = read_all(archive, inner / "out")
        except SampleError as error:
            message = str(error)
        assert str(archive) in message and "\n" not in message, f"mutation {number}: {message}"  # noqa: PT018
        for name, clip in found.items():
            assert bytes(clip) in bytes(content), f"mutation {number}: {name}"
            assert len(name.split("/")) == 2, f"mutation {number}: {name}"
        assert set(tree(tmp_path)) <= {"inner", "inner/a.tar", "inner/out"}, f"mutation {number}"
