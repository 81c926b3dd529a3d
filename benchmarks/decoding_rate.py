"""How fast are clips read: decoded with decord and with PyAV, or from a frame store; and what does building one cost?

    python benchmarks/decoding_rate.py --out outputs/decoding.json

Writes clips of 512 x 320 and 96 frames (drifting texture and grain, H.264), keeps 8 frames of each at 160 x 256, and
takes all sides in turn over several rounds. "Cold" means that the pages of a side's files were dropped from the page
cache before it (posix_fadvise, after fsync); how much a side then read from the disk is printed. Reading a clip from
a store or an Arrow table includes its checksum, so every byte is touched. Pool and build start their own workers.
"""

import argparse
import gc
import json
import os
import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import av
import datasets
import numpy as np
import xxhash

from safe_rlhf_video.cli import Parser, run_script
from safe_rlhf_video.files import write_whole
from safe_rlhf_video.video.codec import Codec
from safe_rlhf_video.video.decoding import Backend, read_video
from safe_rlhf_video.video.frame_store import FrameStore
from safe_rlhf_video.video.pool import DecodePool
from safe_rlhf_video.video.sampling import Sampling
from safe_rlhf_video.video.store_builder import ClipFile, build_store

WIDTH, HEIGHT, NUM_FRAMES = 512, 320, 96
SAMPLING = Sampling(num_frames=8, max_pixels=224 * 224, size_multiple=32)

# Numerator, denominator, what is asked of their ratio of clips/s.
TARGETS = [
    ("store raw, warm", "decord, warm", ">= 50"),
    ("store raw, warm", "PyAV, warm", ">= 50"),
    ("pool of 1", "build with 1", "<= 1.15"),
    ("pool of 2", "build with 2", "<= 1.15"),
    ("build with 2", "build with 1", ""),
    ("store raw, warm", "Arrow rows, warm", ""),
    ("store raw, warm", "Arrow buffers, warm", ""),
    ("store raw, cold", "Arrow rows, cold", ""),
    ("store raw, cold", "PyAV, cold", ""),
    ("store jpeg, warm", "PyAV, warm", ""),
]


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_clips", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="where the files are put for the time being; on a disk, not tmpfs")
    parser.add_argument("--out", type=Path, help="a JSON file with every round")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        result = measure(Path(folder), arguments.num_clips, arguments.rounds)
    print_result(result)
    if arguments.out:
        write_whole(arguments.out, json.dumps(result, indent=1) + "\n")


def measure(folder: Path, num_clips: int, rounds: int) -> dict[str, Any]:
    clips = [ClipFile(f"prompt/{number}", folder / f"{number}.mp4") for number in range(num_clips)]
    for number, clip in enumerate(clips):
        write_textured_clip(clip.path, seed=number)
    paths = [clip.path for clip in clips]
    names = [clip.name for clip in clips]
    build_store(folder / "raw", SAMPLING, clips, num_clips)
    build_store(folder / "jpeg", SAMPLING, clips, num_clips, codec=Codec("jpeg"))
    write_arrow_table(folder / "raw", names, folder / "arrow")

    readers: dict[str, tuple[list[Path], Callable[[], object]]] = {
        "decord": (paths, partial(decode, paths, "decord")),
        "PyAV": (paths, partial(decode, paths, "pyav")),
        "store raw": (files_in(folder / "raw"), partial(read_store, folder / "raw", names)),
        "store jpeg": (files_in(folder / "jpeg"), partial(read_store, folder / "jpeg", names)),
        "Arrow rows": (files_in(folder / "arrow"), partial(read_arrow_rows, folder / "arrow", num_clips)),
        "Arrow buffers": (files_in(folder / "arrow"), partial(read_arrow_buffers, folder / "arrow", num_clips)),
    }
    seconds: dict[str, list[float]] = {}
    cpu_seconds: dict[str, list[float]] = {}
    disk_bytes: dict[str, list[int]] = {}

    def run(name: str, side: Callable[[], object]) -> None:
        read_before, cpu_before, started = bytes_from_disk(), cpu_time(), time.perf_counter()
        side()
        seconds.setdefault(name, []).append(time.perf_counter() - started)
        cpu_seconds.setdefault(name, []).append(cpu_time() - cpu_before)
        disk_bytes.setdefault(name, []).append(bytes_from_disk() - read_before)

    for _ in range(rounds):
        for name, (files, side) in readers.items():
            drop_from_cache(files)
            run(f"{name}, cold", side)
            run(f"{name}, warm", side)
        for num_workers in (1, 2):
            run(f"pool of {num_workers}", partial(decode_in_pool, paths, num_workers))
            run(
                f"build with {num_workers}",
                partial(build_store, folder / "new", SAMPLING, clips, num_clips, num_workers=num_workers),
            )
            shutil.rmtree(folder / "new")
    return {
        "num_clips": num_clips,
        "frames": [NUM_FRAMES, HEIGHT, WIDTH],
        "sampling": SAMPLING.to_dict(),
        "clip_bytes": [path.stat().st_size for path in paths],
        "stored_bytes": {
            name: sum(file.stat().st_size for file in files_in(folder / name)) for name in ("raw", "jpeg", "arrow")
        },
        "clips_per_second": {name: [num_clips / value for value in values] for name, values in seconds.items()},
        "cpu_milliseconds": {
            name: [1e3 * value / num_clips for value in values] for name, values in cpu_seconds.items()
        },
        "megabytes_from_disk": {name: [value / 1e6 for value in values] for name, values in disk_bytes.items()},
    }


def print_result(result: dict[str, Any]) -> None:
    rates = result["clips_per_second"]
    print(f"{result['num_clips']} clips of {statistics.mean(result['clip_bytes']) / 1e3:.0f} kB on average; medians")
    print(f"{'side':<20} {'clips/s':>9} {'CPU ms/clip':>12} {'from disk':>11}")
    for name, values in rates.items():
        megabytes = statistics.median(result["megabytes_from_disk"][name])
        cpu = statistics.median(result["cpu_milliseconds"][name])
        print(f"{name:<20} {statistics.median(values):9.1f} {cpu:12.2f} {megabytes:8.1f} MB")
    print("\nratios within a round, median (least to most)")
    for one, other, target in TARGETS:
        ratios = [a / b for a, b in zip(rates[one], rates[other], strict=True)]
        asked = f", asked {target}" if target else ""
        print(f"{one} / {other}: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}){asked}")
    sizes = {name: size / result["num_clips"] / 1e3 for name, size in result["stored_bytes"].items()}
    print("\nkB a clip: " + ", ".join(f"{name} {size:.0f}" for name, size in sizes.items()))


def write_textured_clip(path: Path, seed: int) -> None:
    """Two layers of blurred noise that drift apart, a square before them, and fresh grain in every frame."""
    rng = np.random.default_rng(seed)
    layers = []
    for scale in (4, 16):
        coarse = rng.integers(0, 256, (HEIGHT // scale, WIDTH // scale, 3)).astype(np.float32)
        layer = np.kron(coarse, np.ones((scale, scale, 1), dtype=np.float32))
        for axis in (0, 1):
            layer = sum(np.roll(layer, shift, axis) for shift in range(-2, 3)) / 5  # type: ignore[assignment]
        layers.append(layer)
    grain = rng.normal(0.0, 4.0, (8, HEIGHT, WIDTH, 1)).astype(np.float32)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=24, options={"preset": "veryfast", "crf": "23"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for index in range(NUM_FRAMES):
            picture = 0.3 * np.roll(layers[0], 2 * index, axis=1) + 0.7 * np.roll(layers[1], -index, axis=0)
            picture[100:180, 3 * index : 3 * index + 80] = 255.0 - picture[100:180, 3 * index : 3 * index + 80]
            picture += grain[rng.integers(8)]
            frame = av.VideoFrame.from_ndarray(picture.clip(0, 255).astype(np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def decode(paths: list[Path], backend: Backend) -> None:
    for path in paths:
        read_video(path, SAMPLING, backend)


def decode_in_pool(paths: list[Path], num_workers: int) -> None:
    with DecodePool(SAMPLING, num_workers) as pool:
        for _ in pool.iterate(paths):
            pass


def read_store(folder: Path, names: list[str]) -> None:
    store = FrameStore.open(folder, SAMPLING)
    for name in names:
        store.read(name)


def write_arrow_table(store_folder: Path, names: list[str], out: Path) -> None:
    store = FrameStore(store_folder)

    def rows() -> Iterator[dict[str, Any]]:
        for name in names:
            video = store.read(name)
            yield {
                "name": name,
                "frames": video.frames.tobytes(),
                "shape": video.frames.shape,
                "timestamps": video.timestamps,
                "checksum": xxhash.xxh3_128_hexdigest(video.frames.data),
            }

    features = datasets.Features(
        {
            "name": datasets.Value("string"),
            "frames": datasets.Value("large_binary"),
            "shape": datasets.List(datasets.Value("int64")),
            "timestamps": datasets.List(datasets.Value("float64")),
            "checksum": datasets.Value("string"),
        }
    )
    datasets.disable_progress_bars()
    table = datasets.Dataset.from_generator(rows, features=features, cache_dir=str(out.with_name("arrow-cache")))
    table.save_to_disk(str(out))


def read_arrow_rows(folder: Path, num_clips: int) -> None:
    """As anyone would: a row is a dict of Python objects."""
    table = datasets.load_from_disk(str(folder))
    for index in range(num_clips):
        row = table[index]
        frames = np.frombuffer(row["frames"], dtype=np.uint8).reshape(row["shape"])
        assert xxhash.xxh3_128_hexdigest(frames.data) == row["checksum"]


def read_arrow_buffers(folder: Path, num_clips: int) -> None:
    """Without a copy: frames are a view of the mapped file."""
    table = datasets.load_from_disk(str(folder)).with_format("arrow")
    for index in range(num_clips):
        row = table[index]
        buffer = row["frames"][0].as_buffer()
        frames = np.frombuffer(buffer, dtype=np.uint8).reshape(row["shape"][0].as_py())
        assert xxhash.xxh3_128_hexdigest(frames.data) == row["checksum"][0].as_py()


def files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def drop_from_cache(paths: list[Path]) -> None:
    gc.collect()  # mapped pages stay
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def cpu_time() -> float:
    """Seconds of CPU that this process and its ended children have taken."""
    usages = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def bytes_from_disk() -> int:
    """What this process, without its children, has had read from the disk."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["read_bytes"])


if __name__ == "__main__":
    run_script(main)
