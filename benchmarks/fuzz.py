"""Are broken and hostile files refused? Seeded mutations of clips, JSON configs, CSV files and archives.

    python benchmarks/fuzz.py --mutations 1000 --seed 0 --out outputs/fuzz.json

Each mutated file has to be refused with one line that names it, or to be valid by a check that is written here a
second time, from the format's description. Anything else is a failure: another exception, a message of two lines, a
broken record that is accepted, a valid one that is not, a clip that lies outside the folder, a file that is written
there, a clip that takes longer than its limit, a decoding pool that does not go on. Failing files are kept beside the
result. The exit code is 1 if there is one.
"""

import argparse
import contextlib
import copy
import csv
import gzip
import io
import json
import os
import random
import shutil
import statistics
import struct
import tarfile
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from safe_rlhf_video.cli import Parser, run_script
from safe_rlhf_video.errors import ConfigError, SafeRLHFVideoError, SampleError, VideoDecodeError
from safe_rlhf_video.files import write_whole
from safe_rlhf_video.progress import progress_bar

CLIP_TIMEOUT_S = 5.0
RESTART_S = 10.0  # a worker that was killed is replaced before the next clip
PREFERENCES = {"video_0": 0, "video_1": 1, "tie": "tie", None: None}
PROMPT_KEYS = ("prompt_id", "prompt_text", "prompt_type")
VIDEO_KEYS = ("video_id", "video_text", "video_path", "response_text", "is_safe", "generated_from")
HARMS = {
    "porn", "violence", "hate", "terrorism", "contraband", "controversial", "racism", "other_discrimination",
    "animal_abuse", "child_abuse", "crime", "other_harmful",
}  # fmt: skip


class Broken(Exception):
    """What a fuzz is for: the message says what went wrong."""


class Mutation(NamedTuple):
    """A mutated file and how it has to be judged.

    `judge` reads it with the package; returns "rejected" or "valid", raises Broken.
    """

    path: Path
    judge: Callable[[], str]


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=1000, help="of each kind")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=tuple(KINDS), default=list(KINDS))
    parser.add_argument("--out", type=Path, default=Path("outputs/fuzz.json"))
    arguments = parser.parse_args()
    if arguments.mutations < 1:
        raise ConfigError(f"mutations: expected 1 or more, got {arguments.mutations}")
    results = {}
    for kind in arguments.kinds:
        kept = arguments.out.parent / "fuzz_failures"
        results[kind] = run(kind, arguments.mutations, arguments.seed, kept)
    print(f"{'kind':6}{'mutations':>10}{'rejected':>10}{'valid':>8}{'failures':>10}{'seconds':>9}{'slowest':>9}")
    for kind, result in results.items():
        print(
            f"{kind:6}{result['mutations']:10}{result['rejected']:10}{result['valid']:8}{len(result['failures']):10}"
            f"{result['seconds']:9.1f}{result['slowest_s']:9.3f}"
        )
    write_whole(arguments.out, json.dumps({"seed": arguments.seed, "kinds": results}, indent=2) + "\n")
    failures = [f"{kind} {line}" for kind, result in results.items() for line in result["failures"]]
    for line in failures[:20]:
        print(line)
    print(f"wrote {arguments.out}")
    if failures:
        raise SafeRLHFVideoError(f"{len(failures)} mutations failed, see {arguments.out}")


def run(kind: str, count: int, seed: int, kept: Path) -> dict[str, Any]:
    """All mutations of one kind."""
    outcomes = {"rejected": 0, "valid": 0}
    failures, seconds = [], []
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name, contextlib.ExitStack() as stack:
        # Everything happens in `inner`; whatever appears beside it was written where nothing may be.
        outer = Path(name).resolve()
        inner = outer / "inner"
        inner.mkdir()
        (outer / "outside").mkdir()
        (outer / "outside" / "secret.mp4").write_bytes(b"secret")
        mutate = stack.enter_context(KINDS[kind](inner))
        with progress_bar(count, 0, f"mutating {kind}", "file") as bar:
            for number in range(count):
                mutation = mutate(random.Random(f"{seed}/{kind}/{number}"), number)
                begun = time.perf_counter()
                try:
                    outcomes[mutation.judge()] += 1
                    if stray := set(os.listdir(outer)) ^ {"inner", "outside"} | set(os.listdir(outer / "outside")) ^ {
                        "secret.mp4"
                    }:
                        raise Broken(f"files appeared or vanished outside: {sorted(stray)}")
                except Broken as error:
                    failures.append(f"{number}: {error}")
                    kept.mkdir(parents=True, exist_ok=True)
                    shutil.copy(mutation.path, kept / f"{seed}-{number}-{mutation.path.name}")
                except Exception as error:
                    failures.append(f"{number}: {type(error).__name__}: {error}")
                    kept.mkdir(parents=True, exist_ok=True)
                    shutil.copy(mutation.path, kept / f"{seed}-{number}-{mutation.path.name}")
                seconds.append(time.perf_counter() - begun)
                bar.update()
    return {
        "mutations": count,
        **outcomes,
        "failures": failures,
        "seconds": round(time.perf_counter() - started, 2),
        "median_s": round(statistics.median(seconds), 5),
        "slowest_s": round(max(seconds), 4),
    }


def check_message(error: SafeRLHFVideoError, *names: str) -> str:
    """A refusal is one line that names the file."""
    message = str(error)
    if "\n" in message or "\r" in message:
        raise Broken(f"a message of several lines: {message!r}")
    if not any(name in message for name in names):
        raise Broken(f"a message that does not name the file: {message!r}")
    return message


# --- bytes ------------------------------------------------------------------------------------------------------------


def mutate_bytes(rng: random.Random, content: bytes, others: list[bytes]) -> bytes:
    """Change a file without knowing what it means."""
    data = bytearray(content)
    at = rng.randrange(len(data))
    length = min(rng.choice([1, 4, 64, 512, 4096]), len(data) - at)
    match rng.randrange(8):
        case 0:
            for _ in range(rng.choice([1, 1, 3, 30])):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        case 1:
            del data[at:]
        case 2:
            data[at:at] = rng.randbytes(length)
        case 3:
            del data[at : at + length]
        case 4:
            other = rng.randrange(len(data) - length + 1)
            data[at : at + length], data[other : other + length] = (
                data[other : other + length],
                data[at : at + length],
            )
        case 5:
            other_file = rng.choice(others)
            data[at:] = other_file[rng.randrange(len(other_file)) :]
        case 6:
            data[at : at + length] = bytes(length)
        case _:
            data[at : at + 4] = rng.choice([b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", rng.randbytes(4)])
    return bytes(data)


# --- clips ------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def fuzz_mp4(folder: Path) -> Iterator[Callable[[random.Random, int], Mutation]]:
    """Clips in child processes: a Video, or an error of that clip within the limit, and the pool goes on."""
    import numpy as np

    from safe_rlhf_video.video.pool import DecodePool
    from safe_rlhf_video.video.sampling import Sampling, Video

    clips = [write_clip(folder / f"good{number}.mp4", number) for number in range(4)]
    originals = [clip.read_bytes() for clip in clips]
    path = folder / "mutated.mp4"
    sampling = Sampling(num_frames=4, min_pixels=1024, max_pixels=1024, size_multiple=8)
    with DecodePool(sampling, num_workers=1, timeout_s=CLIP_TIMEOUT_S) as pool:
        expected = pool.read(clips)

        def judge(uncut: Video | None) -> str:
            started = time.perf_counter()
            lost = False
            try:
                video = pool.read([path])[0]
                outcome = "valid"
            except VideoDecodeError as error:
                message = check_message(error, str(path))
                lost = "crashed" in message or "longer than" in message
                if "crashed (exit code" in message:  # a signal may come from a decoder, an exit code comes from Python
                    raise Broken(f"an exception nobody caught: {message}") from error
                outcome = "rejected"
            seconds = time.perf_counter() - started
            if seconds > CLIP_TIMEOUT_S + RESTART_S:
                raise Broken(f"took {seconds:.1f} s, the limit is {CLIP_TIMEOUT_S:g} s")
            if outcome == "valid":
                shape, times = video.frames.shape, video.timestamps
                if len(shape) != 4 or not 1 <= shape[0] <= 4 or shape[3] != 3 or min(shape) < 1:
                    raise Broken(f"frames of shape {shape}")
                if times.shape != shape[:1] or not np.isfinite(times).all() or (np.diff(times) < 0).any():
                    raise Broken(f"times {times} of frames {shape}")
                if uncut is not None and not np.array_equal(video.frames, uncut.frames):
                    raise Broken(f"a clip that was cut off after {path.stat().st_size} bytes is read as a shorter one")
            if lost or random.Random(path.stat().st_size).random() < 0.04:
                after = pool.read(clips[:1])[0]
                if not np.array_equal(after.frames, expected[0].frames):
                    raise Broken("the pool reads a good clip differently afterwards")
            return outcome

        def mutate(rng: random.Random, number: int) -> Mutation:
            clip = number % len(clips)
            content, uncut = originals[clip], None
            choice = rng.random()
            if choice < 0.15:
                content, uncut = content[: rng.randrange(len(content))], expected[clip]
            elif choice < 0.6:
                content = mutate_box(rng, content)
            else:
                content = mutate_bytes(rng, content, originals)
            path.write_bytes(content)
            return Mutation(path, lambda: judge(uncut))

        yield mutate


def write_clip(path: Path, number: int) -> Path:
    """Drifting noise in one of four layouts of H.264 in MP4."""
    import av
    import numpy as np

    options: dict[str, str] = [{}, {"movflags": "faststart"}, {"movflags": "frag_keyframe+empty_moov"}, {}][number]
    noise = np.random.default_rng(number).integers(0, 256, (48, 64, 3), dtype=np.uint8)
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("libx264", rate=8, options={"bf": "2" if number == 3 else "0", "crf": "40"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for index in range(12):
            frame = av.VideoFrame.from_ndarray(np.roll(noise, 3 * index, axis=1), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def mutate_box(rng: random.Random, content: bytes) -> bytes:
    """Change a box's length, its type or a number in it: what demuxers believe."""
    data = bytearray(content)
    boxes = list(find_boxes(content, 0, len(content)))
    start, end, _ = rng.choice([box for box in boxes if box[2] != b"mdat"])
    match rng.randrange(6):
        case 0:
            data[start : start + 4] = struct.pack(">I", rng.choice([0, 1, 7, 8, end - start + 1, 2**31, 2**32 - 1]))
        case 1:
            data[start + 4 : start + 8] = rng.choice([b"free", b"moov", b"mdat", b"stbl", rng.randbytes(4)])
        case 2:
            data[start:start] = data[start:end]
        case 3:
            del data[start:end]
        case _:
            at = rng.randrange(start + 8, max(start + 9, end - 3))
            value = rng.choice([0, 1, 2, 2**16, 2**24, 2**31 - 1, 2**31, 2**32 - 1, rng.randrange(2**32)])
            data[at : at + 4] = struct.pack(">I", value)
    return bytes(data)


def find_boxes(content: bytes, start: int, end: int) -> Iterator[tuple[int, int, bytes]]:
    """Start, end and type of each box, those inside others included."""
    while start + 8 <= end:
        size, kind = struct.unpack(">I4s", content[start : start + 8])
        if size < 8 or start + size > end:
            return
        yield start, start + size, kind
        if kind in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"moof", b"traf", b"mvex"):
            yield from find_boxes(content, start + 8, start + size)
        start += size


# --- JSON -------------------------------------------------------------------------------------------------------------

ODD_VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 1.5, 10**400, "", " ", "video_0", "video_1", "tie", "video_2", "VIDEO_0", "0", "..",
    ".", "../x", "a/b", "a\\b", "/etc/passwd", "../../outside/secret.mp4", "link/secret.mp4", "videos/../../x.mp4",
    "a\0b", "two\nlines", "\ud800", "é" * 300, "x" * 5000, [], {}, [[]], {"a": None}, ["video_0"], float("nan"),
]  # fmt: skip


@contextlib.contextmanager
def fuzz_json(folder: Path) -> Iterator[Callable[[random.Random, int], Mutation]]:
    """Configs: SampleError, or records that the check below accepts too, with the same labels and no clip outside."""
    (folder / "link").symlink_to(folder.parent / "outside")
    (folder / "videos").mkdir()
    (folder / "videos" / "p0").symlink_to(folder.parent / "outside")
    originals = [json.dumps(make_records(random.Random(number)), indent=number % 2).encode() for number in range(4)]

    def mutate(rng: random.Random, number: int) -> Mutation:
        records = make_records(random.Random(number % 4))
        if rng.random() < 0.3:
            content = mutate_bytes(rng, originals[number % 4], originals)
        else:
            for _ in range(rng.choice([1, 1, 2])):
                mutate_tree(rng, records)
            content = json.dumps(records).encode()
            if rng.random() < 0.1:  # one key twice
                at = rng.choice([i for i in range(len(content)) if content[i : i + 2] == b'{"'] or [0])
                key = rng.choice([b"pair_id", b"helpfulness", b"video_id", b"new"])
                content = content[: at + 1] + b'"%s": "%d", ' % (key, rng.randrange(9)) + content[at + 1 :]
        name = "config.json"
        plain: bytes | None = content
        if rng.random() < 0.3:
            name, content = "config.json.gz", gzip.compress(content)
            if rng.random() < 0.5:
                content = mutate_bytes(rng, content, [content])
            try:
                plain = gzip.decompress(content)
            except (OSError, EOFError, zlib.error):
                plain = None
        path = folder / name
        path.write_bytes(content)
        by_id = rng.random() < 0.5
        return Mutation(path, lambda: judge_config(path, plain, by_id))

    yield mutate


def judge_config(path: Path, plain: bytes | None, by_id: bool) -> str:
    from safe_rlhf_video.data.datasets import PairDataset

    records, fault = check_config(plain, by_id)
    try:
        dataset = PairDataset.load(path.parent if by_id else path, path.name)
    except SampleError as error:
        message = check_message(error, path.name)
        if fault is None:
            raise Broken(f"a valid file is refused: {message}") from error
        return "rejected"
    if fault is not None:
        raise Broken(f"a broken file is accepted: {fault}")
    if len(dataset) != len(records):
        raise Broken(f"{len(dataset)} of {len(records)} records")
    for pair, record in zip(dataset.pairs, records, strict=True):
        read, expected = describe_pair(pair), describe_record(record)
        for name, value in expected.items():
            if read[name] != value:
                raise Broken(f"{name} is read as {read[name]!r}, expected {value!r}")
    for video in dataset.videos:
        if video.video_path is None:
            continue
        try:
            file = dataset.video_file(video)
        except SampleError as error:
            check_message(error, path.name)
            continue
        if not os.path.realpath(file).startswith(f"{path.parent}{os.sep}"):
            raise Broken(f"a clip outside the folder: {file}")
    return "valid"


def describe_pair(pair: Any) -> dict[str, Any]:
    """All that was read of known fields."""
    read = {name: getattr(pair, name) for name in ("pair_id", *PROMPT_KEYS)} | dict(pair.preferences)
    for name in ("video_0", "video_1"):
        video = getattr(pair, name)
        read[name] = {key: getattr(video, key) for key in (*PROMPT_KEYS, *VIDEO_KEYS)}
        read[name]["video_labels"] = video.harm_labels and dict(video.harm_labels)
        read[name]["prompt_labels"] = video.prompt_labels and dict(video.prompt_labels)
    return read


def describe_record(record: dict[str, Any]) -> dict[str, Any]:
    """The same of a valid record, from the format's description."""
    subs = record.get("sub_preferences") or {}
    expected = {name: record.get(name) for name in ("pair_id", *PROMPT_KEYS)}
    expected |= {name: PREFERENCES[record.get(name)] for name in ("helpfulness", "harmlessness")}
    expected |= {name: PREFERENCES[subs.get(name)] for name in ("instruction_following", "correctness", "aesthetics")}
    either = subs.get("informativeness")
    expected["informativeness"] = PREFERENCES[subs.get("information") if either is None else either]
    for name in ("video_0", "video_1"):
        video = record[name]
        expected[name] = {key: record.get(key) for key in PROMPT_KEYS} | {key: video.get(key) for key in VIDEO_KEYS}
        for key in ("video_labels", "prompt_labels"):
            known = {label: value for label, value in (video.get(key) or {}).items() if label in HARMS}
            expected[name][key] = {label: value for label, value in known.items() if value is not None}
            if not expected[name][key] and video.get(key) is None:
                expected[name][key] = None
    return expected


def make_records(rng: random.Random) -> list[dict[str, Any]]:
    """Four valid pairs of two prompts."""
    records = []
    for number in range(4):
        prompt = {"prompt_id": f"p{number % 2}", "prompt_text": f"a kite {number % 2} é", "prompt_type": "neutral"}
        record: dict[str, Any] = {"pair_id": f"{number}", **prompt, "note": "unknown fields are kept"}
        for side in range(2):
            name = f"v{(number + side) % 3}"
            record[f"video_{side}"] = (prompt if rng.random() < 0.5 else {}) | {
                "video_id": name,
                "video_text": None,
                "video_path": f"videos/{prompt['prompt_id']}/{name}.mp4",
                "is_safe": rng.choice([True, False, None]),
                "video_labels": {"porn": False, "crime": True, "new label": 3},
                "generated_from": "model",
            }
        record |= {name: rng.choice(list(PREFERENCES)) for name in ("helpfulness", "harmlessness")}
        record["sub_preferences"] = {
            name: rng.choice(["video_0", None])
            for name in ("aesthetics", rng.choice(["information", "informativeness"]), "correctness")
        }
        records.append(record)
    return records


def mutate_tree(rng: random.Random, records: list[Any]) -> None:
    """Replace, delete, duplicate, rename or swap a random field."""
    places: list[tuple[Any, Any]] = []

    def visit(node: Any) -> None:
        keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        for key in keys:
            places.append((node, key))
            visit(node[key])

    visit(records)
    if not places:
        return
    node, key = rng.choice(places)
    match rng.randrange(6):
        case 0:
            del node[key]
        case 1 if isinstance(node, list):
            node.append(copy.deepcopy(node[key]))
        case 2 if isinstance(node, dict):
            node[rng.choice(["response_text", "informativeness", "helpfulness", "x"])] = node.pop(key)
        case 3:
            other, other_key = rng.choice(places)
            with contextlib.suppress(KeyError, IndexError):
                other[other_key] = copy.deepcopy(node[key])
        case _:
            node[key] = copy.deepcopy(rng.choice(ODD_VALUES))


def check_config(plain: bytes | None, by_id: bool) -> tuple[list[Any], str | None]:
    """The records of a pair file and what is wrong with them; written from the format's description alone."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len(dict(pairs)) != len(pairs):
            raise ValueError("one key twice")
        return dict(pairs)

    def constant(name: str) -> None:
        raise ValueError(name)

    if plain is None:
        return [], "not gzip"
    try:
        records = json.loads(plain.decode("utf-8-sig"), object_pairs_hook=unique, parse_constant=constant)
    except (ValueError, RecursionError) as error:
        return [], f"not JSON: {error}"
    if not isinstance(records, list):
        return [], "not a list"
    try:
        for record in records:
            check_pair(record)
        assert len({record["pair_id"] for record in records}) == len(records), "a pair_id twice"
        texts: dict[str, str] = {}
        contents: dict[tuple[str, str], tuple[Any, Any]] = {}
        for record in records:
            text = texts.setdefault(record["prompt_id"], record["prompt_text"])
            assert text == record["prompt_text"], "one prompt_id, two prompts"
            for name in ("video_0", "video_1"):
                video = record[name]
                content = (None if by_id else video.get("video_path"), video.get("response_text"))
                key = (record["prompt_id"], video["video_id"])
                assert contents.setdefault(key, content) == content, "one video_id, two contents"
            paths = [record[name].get("video_path") for name in ("video_0", "video_1")]
            assert by_id or paths[0] is None or paths[0] != paths[1], "a clip compared with itself"
    except AssertionError as error:
        return records, str(error)
    return records, None


def check_pair(record: Any) -> None:
    """Raises AssertionError."""
    assert isinstance(record, dict), "a record that is no object"
    check_id(record, "prompt_id")
    check_text(record, "pair_id")
    assert record["pair_id"], "an empty pair_id"
    check_text(record, "prompt_text")
    check_optional_text(record, "prompt_type")
    videos = [record.get(name) for name in ("video_0", "video_1")]
    for video in videos:
        assert isinstance(video, dict), "a video that is no object"
        check_id(video, "video_id")
        for key in ("prompt_id", "prompt_text", "prompt_type"):
            assert video.get(key) is None or video[key] == record.get(key), f"another {key}"
        for key in ("video_text", "generated_from", "response_text"):
            check_optional_text(video, key)
        if video.get("response_text") is None:
            check_text(video, "video_path")
            assert video["video_path"], "an empty video_path"
            assert "\0" not in video["video_path"], "NUL in a video_path"
            parts = [len(part.encode()) for part in video["video_path"].split("/")]
            assert max(parts) <= 255, "a name in a video_path that is too long"
            assert sum(parts) + len(parts) - 1 <= 4096, "a video_path that is too long"
        else:
            assert video.get("video_path") is None, "a response with a video_path"
        assert video.get("is_safe") is None or isinstance(video["is_safe"], bool), "is_safe"
        for key in ("video_labels", "prompt_labels"):
            labels = video.get(key)
            assert labels is None or isinstance(labels, dict), key
            for name in HARMS:
                value = (labels or {}).get(name)
                assert value is None or isinstance(value, bool), f"{key}.{name}"
    assert videos[0]["video_id"] != videos[1]["video_id"], "one video twice"
    subs = record.get("sub_preferences")
    assert subs is None or isinstance(subs, dict), "sub_preferences"
    subs = subs or {}
    known = ("instruction_following", "correctness", "informativeness", "aesthetics", "information")
    for name, value in [(name, record.get(name)) for name in ("helpfulness", "harmlessness")] + [
        (name, subs.get(name)) for name in known
    ]:
        assert value is None or (isinstance(value, str) and value in PREFERENCES), f"{name} {value!r}"
    both = (subs.get("information"), subs.get("informativeness"))
    assert None in both or both[0] == both[1], "information contradicts informativeness"


def check_text(record: dict[str, Any], key: str) -> None:
    assert isinstance(record.get(key), str), f"{key} is no text"
    assert not any("\ud800" <= character <= "\udfff" for character in record[key]), f"half a character in {key}"


def check_optional_text(record: dict[str, Any], key: str) -> None:
    if record.get(key) is not None:
        check_text(record, key)


def check_id(record: dict[str, Any], key: str) -> None:
    check_text(record, key)
    value = record[key]
    assert value not in ("", ".", ".."), f"{key} {value!r}"
    assert all(character.isprintable() and character not in "/\\" for character in value), f"{key} {value!r}"
    assert len(value.encode()) <= 240, f"{key} is too long for a file name"


# --- CSV --------------------------------------------------------------------------------------------------------------

ODD_CELLS = [
    "", " ", "A", "B", "same", "a", "C", "Same", "A ", "../x.mp4", "/etc/passwd", "videos/../../x.mp4", ".", "\0", '"',
    '""', 'a"b', "a,b", "a\nb", "a\r\nb", "\r", "é", "\ufeff", "x" * 140_000, "'", ";", "\t",
]  # fmt: skip


@contextlib.contextmanager
def fuzz_csv(folder: Path) -> Iterator[Callable[[random.Random, int], Mutation]]:
    """Tables of pairs: SampleError, or the rows that a parser written here finds, in a config that loads."""
    path = folder / "pairs.csv"
    originals = [write_table(make_rows(random.Random(number)), ",") for number in range(4)]

    def mutate(rng: random.Random, number: int) -> Mutation:
        if rng.random() < 0.4:
            content = mutate_bytes(rng, originals[number % 4], originals)
        else:
            rows = make_rows(random.Random(number % 4))
            for _ in range(rng.choice([1, 1, 2])):
                mutate_rows(rng, rows)
            content = write_table(rows, rng.choice([",", ",", ",", ";", "\t"]))
            if rng.random() < 0.2:
                content = content.replace(b"\r\n", rng.choice([b"\n", b"\r", b"\n\n"]))
        path.write_bytes(content)
        return Mutation(path, lambda: judge_table(path))

    yield mutate


def make_rows(rng: random.Random) -> list[list[str]]:
    header = ["", "path_A", "path_B", "prompt", "A_model", "B_model", "VQ", "MQ", "TA", "Overall", "fps"]
    rows = [header]
    for number in range(5):
        clips = [f"videos/m{side}/{number % 3}.mp4" for side in range(2)]
        labels = [rng.choice(["A", "B", "same", ""]) for _ in range(4)]
        rows.append([str(number), *clips, f'a "kite", {number % 2}\nand a sea', "m0", "m1", *labels, "8.0"])
    return rows


def mutate_rows(rng: random.Random, rows: list[list[str]]) -> None:
    row = rng.choice(rows)
    if not row:
        return
    at = rng.randrange(len(row))
    match rng.randrange(6):
        case 0:
            del row[at]
        case 1:
            row.insert(at, rng.choice(ODD_CELLS))
        case 2:
            rows.append(list(row))
        case 3:
            other = rng.randrange(len(row))
            row[at], row[other] = row[other], row[at]
        case _:
            row[at] = rng.choice(ODD_CELLS)


def write_table(rows: list[list[str]], delimiter: str) -> bytes:
    buffer = io.StringIO(newline="")
    csv.writer(buffer, delimiter=delimiter).writerows(rows)
    return buffer.getvalue().encode()


def judge_table(path: Path) -> str:
    from safe_rlhf_video.data.config_files import write_records
    from safe_rlhf_video.data.datasets import PairDataset
    from safe_rlhf_video.data.sources.video_align import convert_csv

    expected, fault = check_table(path)
    try:
        records, _ = convert_csv(path, path.parent)
    except SampleError as error:
        message = check_message(error, path.name)
        if fault is None:
            raise Broken(f"a valid file is refused: {message}") from error
        return "rejected"
    if fault is not None:
        raise Broken(f"a broken file is accepted: {fault}")
    got = [
        (
            record["prompt_text"],
            record["video_0"]["video_path"],
            record["video_1"]["video_path"],
            record["helpfulness"],
            record.get("sub_preferences", {}).get("aesthetics"),
        )
        for record in records
    ]
    if got != expected:
        raise Broken(f"read as {got}, expected {expected}")
    config = path.with_name("converted.json")
    write_records(config, records)
    dataset = PairDataset.load(config)
    for video in dataset.videos:
        if not str(dataset.video_file(video)).startswith(f"{path.parent}{os.sep}"):
            raise Broken(f"a clip outside the folder: {video.video_path!r}")
    return "valid"


def check_table(path: Path) -> tuple[list[tuple[Any, ...]], str | None]:
    """(prompt, clip A, clip B, Overall, VQ) of each row and what is wrong; written from the format's description."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
        assert "\0" not in text, "NUL"
        rows = [row for row in parse_table(text) if row]
        assert rows, "empty"
        header, *rest = rows
        assert all(len(cell) <= 131_072 for cell in header), "a column name that is too long"
        assert len(set(header)) == len(header), "a column twice"
        assert {"path_A", "path_B", "prompt"} <= set(header), "a column is missing"
        assert {"VQ", "MQ", "TA", "Overall"} & set(header), "no labels"
        names = {"A": "video_0", "B": "video_1", "same": "tie", "": None}
        found = []
        for row in rest:
            assert len(row) == len(header), "cells"
            assert all(len(cell) <= 131_072 for cell in row), "a cell that is too long"
            cells = dict(zip(header, row, strict=True))
            clips = []
            for column in ("path_A", "path_B", "prompt"):
                assert cells[column].strip(), f"an empty {column}"
            for column in ("VQ", "MQ", "TA", "Overall"):
                assert cells.get(column, "") in names, f"{column} {cells.get(column)!r}"
            for column in ("path_A", "path_B"):
                clip = os.path.normpath(os.path.join(path.parent, cells[column]))
                assert clip.startswith(f"{path.parent}{os.sep}"), f"{cells[column]!r} leads out"
                *_, name = clip.split(os.sep)
                ending = "" if 0 < name.rfind(".") < len(name) - 1 or os.path.isfile(clip) else ".mp4"
                clips.append(clip.removeprefix(f"{path.parent}{os.sep}") + ending)
            if clips[0] != clips[1]:
                labels = [names[cells[column]] if column in cells else None for column in ("Overall", "VQ")]
                found.append((cells["prompt"], *clips, *labels))
    except (AssertionError, UnicodeDecodeError) as error:
        return [], str(error)
    return found, None


def parse_table(text: str) -> list[list[str]]:
    """CSV as RFC 4180 has it, with any line end; raises AssertionError."""
    rows: list[list[str]] = []
    row: list[str] = []
    at, start_of_row = 0, True
    while at < len(text):
        if start_of_row and text[at] in "\r\n":
            rows.append([])
            at += 2 if text[at : at + 2] == "\r\n" else 1
            continue
        start_of_row = False
        if text[at : at + 1] == '"':
            cell = ""
            while True:
                end = text.find('"', at + 1)
                assert end >= 0, "a quote that is not closed"
                cell += text[at + 1 : end]
                at = end + 1
                if text[at : at + 1] != '"':
                    break
                cell += '"'
            assert text[at : at + 1] in ("", ",", "\r", "\n"), "text after a quote"
        else:
            end = at
            while end < len(text) and text[end] not in ",\r\n":
                end += 1
            cell, at = text[at:end], end
        row.append(cell)
        if text[at : at + 1] == ",":
            at += 1
            if at == len(text) or text[at] in "\r\n":
                row.append("")
            else:
                continue
        rows.append(row)
        row, start_of_row = [], True
        at += 2 if text[at : at + 2] == "\r\n" else 1
    return rows


# --- archives ---------------------------------------------------------------------------------------------------------

HOSTILE_NAMES = ["../evil.mp4", "videos/../../evil.mp4", "/tmp/evil.mp4", "videos/p/..", "videos\\..\\x.mp4"]
HOSTILE_TYPES = [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, b"S", b"Z"]


@contextlib.contextmanager
def fuzz_tar(folder: Path) -> Iterator[Callable[[random.Random, int], Mutation]]:
    """Archives: SampleError, or the members that tarfile finds when it may seek, all of them plain files."""
    forms = (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT)

    def mutate(rng: random.Random, number: int) -> Mutation:
        members = make_members(random.Random(number % 4))
        hostile = False
        choice = rng.random()
        if choice < 0.3:
            hostile = True
            info, content = rng.choice(members)
            match rng.randrange(4):
                case 0:
                    info.name = rng.choice(HOSTILE_NAMES)
                case 1:
                    info.type, info.linkname = rng.choice(HOSTILE_TYPES), "../../outside/secret.mp4"
                case 2:
                    info.pax_headers = {"path": rng.choice(HOSTILE_NAMES)}
                case 3:
                    other = rng.choice([member for member, _ in members if member is not info])
                    info.name = rng.choice(["", "./"]) + other.name.removeprefix("./")
        form = (
            tarfile.PAX_FORMAT
            if hostile and members and any(i.pax_headers for i, _ in members)
            else (rng.choice(forms))
        )
        content = pack(members, form)
        if choice > 0.6:
            content = mutate_header(rng, content)
        elif choice > 0.3:
            content = mutate_bytes(rng, content, [content])
        name = "archive.tar"
        plain: bytes | None = content
        if rng.random() < 0.4:
            name, content = "archive.tar.gz", gzip.compress(content, 1)
            if rng.random() < 0.4 and not hostile:
                content = mutate_bytes(rng, content, [content])
            try:
                plain = gzip.decompress(content)
            except (OSError, EOFError, zlib.error):
                plain = None
        elif content[:2] == b"\x1f\x8b":
            plain = None
        path = folder / name
        path.write_bytes(content)
        return Mutation(path, lambda: judge_archive(path, plain, hostile))

    yield mutate


def make_members(rng: random.Random) -> list[tuple[tarfile.TarInfo, bytes]]:
    members = []
    for number in range(6):
        name = f"videos/{'p' * 64}{number // 2}/{'v' * 64}{number % 2}.mp4" if number < 5 else "README.md"
        info = tarfile.TarInfo(rng.choice(["", "./"]) + name)
        content = rng.randbytes(rng.choice([0, 100, 512, 2000]))
        info.size = len(content)
        members.append((info, content))
    return members


def pack(members: list[tuple[tarfile.TarInfo, bytes]], form: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as tar:
        for info, content in members:
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def mutate_header(rng: random.Random, content: bytes) -> bytes:
    """Change fields of a header and make its checksum right again, so that the change is reached."""
    data = bytearray(content)
    starts = [at for at in range(0, len(data), 512) if data[at + 257 : at + 262] == b"ustar"]
    start = rng.choice(starts)
    header = data[start : start + 512]
    for _ in range(rng.choice([1, 1, 2, 3])):
        match rng.randrange(5):
            case 0:
                header[156] = rng.choice(b"01235670LKxgS\0")
            case 1:
                sizes = [b"%011o\0" % rng.choice([0, 1, 511, 513, 10**6, 8**11 - 1]), b"\x80" + bytes(10) + b"\x10",
                         b"\xff" * 12, b" " * 12, b"-0000000001\0", b"zzzzzzzzzzz\0"]  # fmt: skip
                header[124:136] = rng.choice(sizes)
            case 2:
                name = rng.choice([*HOSTILE_NAMES, "videos/a/b.mp4", "x", "videos/\xff/b.mp4", ""])
                header[:100] = name.encode("latin-1").ljust(100, b"\0")
            case 3:
                header[345:500] = rng.choice([b"..", b"/", b"", b"videos/x"]).ljust(155, b"\0")
            case _:
                header[rng.randrange(512)] = rng.randrange(256)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    data[start : start + 512] = header
    return bytes(data)


def judge_archive(path: Path, plain: bytes | None, hostile: bool) -> str:
    from safe_rlhf_video.data.sources.archive import iterate_clips

    out = path.parent / "clips"
    clips = {}
    try:
        for name, clip in iterate_clips(path, out):
            if clip.parent != out or clip.is_symlink() or len(name.split("/")) != 2:
                raise Broken(f"{name} at {clip}")
            clips[name] = clip.read_bytes()
            clip.unlink()
        outcome = "valid"
    except SampleError as error:
        check_message(error, str(path))
        outcome = "rejected"
    left = {entry.name for entry in path.parent.iterdir()} - {"archive.tar", "archive.tar.gz", "clips"}
    if left or (out.exists() and list(out.iterdir())):
        raise Broken(f"files are left: {left}")
    if outcome == "rejected":
        return outcome
    if hostile:
        raise Broken(f"a hostile member is accepted: {list(clips)}")
    if plain is None:
        raise Broken("a damaged archive is accepted")
    expected = {}
    with tarfile.open(fileobj=io.BytesIO(plain), mode="r:") as tar:
        for member in tar:
            parts = [part for part in member.name.split("/") if part not in ("", ".")]
            if not (member.isreg() or member.isdir()) or ".." in parts or member.name.startswith("/"):
                raise Broken(f"accepted with member {member.name!r} of type {member.type!r}")
            if member.isreg() and len(parts) == 3 and parts[0] == "videos" and parts[2].endswith(".mp4"):
                content = tar.extractfile(member)
                assert content is not None
                expected[f"{parts[1]}/{parts[2].removesuffix('.mp4')}"] = content.read()
    if clips != expected:
        raise Broken(f"read {list(clips)}, expected {list(expected)}")
    return outcome


KINDS: dict[str, Callable[[Path], contextlib.AbstractContextManager[Callable[[random.Random, int], Mutation]]]] = {
    "mp4": fuzz_mp4,
    "json": fuzz_json,
    "csv": fuzz_csv,
    "tar": fuzz_tar,
}

if __name__ == "__main__":
    run_script(main)
