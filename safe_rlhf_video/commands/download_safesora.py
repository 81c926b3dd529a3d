"""Fetch one of SafeSora's corpora from the Hugging Face hub.

    python scripts/download_safesora.py --corpus pairs --out SafeSora

pairs: comparisons (PKU-Alignment/SafeSora); label: harm labels of single videos (SafeSora-Label); eval: prompts to
generate from (SafeSora-Eval). The clips of pairs and label are the same videos.tar.gz (31.8 GB): fetch it once, and the
other corpus with --no_videos. The same command goes on after an interruption: whole files are checked against the hub's
checksum and kept, a partial one is continued. HF_TOKEN names your access token, HF_ENDPOINT another hub.
"""

import argparse
import glob
import hashlib
import os
import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, NamedTuple

from safe_rlhf_video.cli import Parser
from safe_rlhf_video.errors import ConfigError, SafeRLHFVideoError

REPOSITORIES = {
    "pairs": "PKU-Alignment/SafeSora",
    "label": "PKU-Alignment/SafeSora-Label",
    "eval": "PKU-Alignment/SafeSora-Eval",
}
PYTHON_CLASSES = {"label": "VideoDataset", "eval": "PromptDataset"}
ARCHIVE = "videos.tar.gz"
LICENCE = """\
SafeSora is licensed under CC BY-NC 4.0: you may use and share it with attribution, for non-commercial purposes only
(https://creativecommons.org/licenses/by-nc/4.0/). It shows and describes harmful content."""
CONFIG_SAMPLING = "--max_pixels 50176"  # in which configs differ from the defaults
QUICK_BYTES = 2**24  # a file that is read in a moment needs no bar
BLOCK_BYTES = 2**22


class RemoteFile(NamedTuple):
    """A file as the hub describes it.

    Attributes:
        name: its path within the repository.
        size: bytes.
        digest: SHA-256 of a large file (64 digits); of a small one git's blob id, a SHA-1 (40 digits).
    """

    name: str
    size: int
    digest: str


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", choices=tuple(REPOSITORIES), required=True)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--revision", default="main", metavar="REV", help="a commit, tag or branch of the repository")
    parser.add_argument("--no_videos", action="store_true", help=f"leave {ARCHIVE} out")
    parser.add_argument("--extract", action="store_true", help=f"unpack {ARCHIVE} into DIR/videos")
    arguments = parser.parse_args()
    if arguments.no_videos and arguments.extract:
        raise ConfigError("--extract: there is nothing to unpack with --no_videos; leave one of them out")
    print(LICENCE, flush=True)
    with explain_hub_errors(REPOSITORIES[arguments.corpus], arguments.revision):
        download(arguments)


def download(arguments: argparse.Namespace) -> None:
    from safe_rlhf_video.data.sources.archive import extract_clips

    repository, out = REPOSITORIES[arguments.corpus], arguments.out
    commit, files = list_files(repository, arguments.revision)
    if arguments.no_videos:
        files = [file for file in files if file.name != ARCHIVE]
    has_archive = any(file.name == ARCHIVE for file in files)
    if arguments.extract and not has_archive:
        raise ConfigError(f"--extract: {repository} holds no {ARCHIVE}; leave --extract out")
    try:
        out.mkdir(parents=True, exist_ok=True)
        missing = plan(out, repository, commit, files, arguments.extract)
        for file in missing:
            fetch(out, repository, commit, file)
    except OSError as error:
        if not is_of_the_disk(error):
            raise
        raise ConfigError(
            f"{error.filename or out}: cannot be read or written ({error.strerror}); free space or check the rights, "
            "then run the same command again: what has arrived is kept"
        ) from error
    if arguments.extract:
        report = extract_clips(out / ARCHIVE, out / "videos")
        print(f"{out / 'videos'}: {report.written} clips unpacked, {report.already_there} were there already")
        if report.others:
            print(f"{report.others} members are no clips and were passed over, the first is {report.first_other!r}")
    print(f"{out}: {len(files)} files of {repository} are here and whole (revision {commit})")
    print_next(arguments.corpus, out, [file.name for file in files], arguments.extract)


def list_files(repository: str, revision: str) -> tuple[str, list[RemoteFile]]:
    """The commit that a revision stands for and its files."""
    from huggingface_hub import HfApi

    try:
        info = HfApi().dataset_info(repository, revision=revision, files_metadata=True, timeout=30)
        commit, siblings = str(info.sha), info.siblings or []
        found = [(file.rfilename, file.size, file.lfs.sha256 if file.lfs else file.blob_id) for file in siblings]
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, OSError):  # the hub's errors, some of which are ValueErrors too
            raise
        raise SafeRLHFVideoError(f"{hub()} answered no list of files; check the network and HF_ENDPOINT") from error
    files = []
    for name, size, digest in found:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name:
            raise SafeRLHFVideoError(
                f"{repository}: its file {name!r} would lead out of the folder; nothing is fetched"
            )
        if size is None or digest is None or len(digest) not in (40, 64):
            raise SafeRLHFVideoError(f"{repository}: {hub()} told no size or checksum of {name}; try again later")
        if name != ".gitattributes":
            files.append(RemoteFile(name, size, digest))
    return commit, files


def plan(out: Path, repository: str, commit: str, files: list[RemoteFile], extract: bool) -> list[RemoteFile]:
    """Say what there is to fetch and whether it fits; the files that are missing."""
    print(f"{repository} at {commit[:12]}:")
    missing, needed = [], 0
    for file in files:
        if is_whole(out / file.name, file):
            state = "is here and whole"
        elif (out / file.name).exists():
            raise ConfigError(
                f"{out / file.name}: is damaged, or of another corpus or revision, and is left alone; "
                "delete it, or give another folder as --out"
            )
        else:
            arrived = bytes_arrived(out, file)
            state = f"to fetch; {format_bytes(arrived)} have arrived" if arrived else "to fetch"
            missing.append(file)
            needed += file.size - arrived
        print(f"  {file.name:24} {format_bytes(file.size):>9}  {state}")
        if extract and file.name == ARCHIVE:
            # Clips do not shrink in an archive: unpacked they take about its size again.
            unpacked = sum(path.stat().st_size for path in (out / "videos").glob("*/*.mp4"))
            needed += max(0, file.size - unpacked)
    free = shutil.disk_usage(out).free
    print(f"  {format_bytes(needed)} needed, {format_bytes(free)} free in {out}", flush=True)
    if needed > free:
        raise ConfigError(
            f"{out}: {format_bytes(needed)} are needed and {format_bytes(free)} are free; free space, give another "
            f"folder as --out, or leave {ARCHIVE} out with --no_videos"
        )
    return missing


def fetch(out: Path, repository: str, commit: str, file: RemoteFile) -> None:
    """Fetch a file, from where an earlier run stopped, and rename it into place when its checksum is right."""
    # Not hf_hub_download: in huggingface_hub 2.4 it deletes what an interrupted download has left.
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    partial = partial_path(out, file)
    partial.parent.mkdir(parents=True, exist_ok=True)
    for other in partial.parent.glob(f".{glob.escape(PurePosixPath(file.name).name)}.*.partial"):
        if other != partial:
            other.unlink()
    arrived = bytes_arrived(out, file)
    try:
        with (
            counting_bar(file.size, arrived, file.name) as count,
            partial.open("r+b" if arrived else "wb") as target,
        ):
            target.seek(arrived)
            http_get(
                # The hub redirects to a signed address that is valid for a while; each attempt asks for a new one.
                hf_hub_url(repository, file.name, repo_type="dataset", revision=commit),
                CountedFile(target, count),
                resume_size=arrived,
                headers=build_hf_headers() | {"Accept-Encoding": "identity"},
                expected_size=file.size,
            )
    finally:
        if file.size and partial.is_file() and not partial.stat().st_size:
            partial.unlink()
    if not is_whole(partial, file):
        partial.unlink()
        raise SafeRLHFVideoError(
            f"{out / file.name}: what arrived does not have the checksum that {hub()} tells and was deleted; "
            "run the same command again"
        )
    os.replace(partial, out / file.name)


class CountedFile:
    """A file that is being fetched; `count` is told how many bytes more it has."""

    def __init__(self, file: BinaryIO, count: Callable[[int], Any]) -> None:
        self._file = file
        self._count = count
        self.tell = file.tell
        self.seek = file.seek

    def write(self, block: bytes) -> int:
        try:
            self._file.write(block)
            self._file.flush()
        except OSError as error:
            # http_get's own errors are OSErrors too: the name tells that this one is the disk's.
            error.filename = self._file.name
            raise
        self._count(len(block))
        return len(block)

    def truncate(self) -> int:
        """The hub sends the file from its beginning again."""
        before = os.fstat(self._file.fileno()).st_size
        size = self._file.truncate()
        self._count(size - before)
        return size


def partial_path(out: Path, file: RemoteFile) -> Path:
    """Where a file grows; another revision of it grows elsewhere."""
    path = out / file.name
    return path.with_name(f".{path.name}.{file.digest[:12]}.partial")


def bytes_arrived(out: Path, file: RemoteFile) -> int:
    partial = partial_path(out, file)
    size = partial.stat().st_size if partial.is_file() else 0
    return size if size <= file.size else 0


def is_whole(path: Path, file: RemoteFile) -> bool:
    """Whether a file is there with the size and checksum that the hub tells."""
    if not path.is_file() or path.stat().st_size != file.size:
        return False
    if len(file.digest) == 64:
        digest = hashlib.sha256()
    else:
        digest = hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
    with path.open("rb") as opened, counting_bar(file.size, 0, f"checking {file.name}") as count:
        while block := opened.read(BLOCK_BYTES):
            digest.update(block)
            count(len(block))
    return digest.hexdigest() == file.digest


@contextmanager
def counting_bar(size: int, done: int, description: str) -> Iterator[Callable[[int], Any]]:
    """A bar of bytes for a file that takes a while; gives the function that moves it on."""
    from safe_rlhf_video.progress import progress_bar

    if size <= QUICK_BYTES:
        yield lambda count: None
        return
    with progress_bar(size, done, description, "B") as bar:
        yield bar.update


def is_of_the_disk(error: OSError) -> bool:
    """Whether an error comes from a file here; those of the network name no file."""
    return error.filename is not None and error.errno is not None


@contextmanager
def explain_hub_errors(repository: str, revision: str) -> Iterator[None]:
    """Turn what huggingface_hub raises into one line that says what to do."""
    # Bars of our own count on after an interruption; the library's warnings about retries would stand between them.
    from huggingface_hub import logging

    # Its classes come from another HTTP library with each major version; the hub's own module names the one in use.
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    logging.set_verbosity_error()
    page = f"{hub()}/datasets/{repository}"
    accept = f"accept its terms on {page} and set HF_TOKEN to a token of that account"
    again = "run the same command again: what has arrived is kept"
    try:
        yield
    except OfflineModeIsEnabled as error:
        raise SafeRLHFVideoError(f"{repository}: HF_HUB_OFFLINE is set, so nothing is fetched; unset it") from error
    except RevisionNotFoundError as error:
        raise SafeRLHFVideoError(
            f"{repository}: has no revision {revision!r}; the page {page} lists them, --revision main is the newest"
        ) from error
    except GatedRepoError as error:
        raise SafeRLHFVideoError(f"{repository}: the hub wants to know who asks; {accept}") from error
    except RepositoryNotFoundError as error:
        raise SafeRLHFVideoError(f"{repository}: not found, or not for you; {accept}") from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status in (401, 403):
            raise SafeRLHFVideoError(f"{repository}: access denied ({status}); {accept}") from error
        raise SafeRLHFVideoError(f"{repository}: {hub()} answered with status {status}; later {again}") from error
    except (HTTPError, OSError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise SafeRLHFVideoError(
            f"{repository}: no connection to {hub()} ({reason}); check the network, then {again}"
        ) from error


def hub() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT


def print_next(corpus: str, out: Path, names: list[str], extracted: bool) -> None:
    from safe_rlhf_video.data.config_files import is_config_name

    configs = [name for name in names if is_config_name(name)]
    has_archive = ARCHIVE in names
    folder = shlex.quote(str(out))
    print("\nNext:")
    if corpus in PYTHON_CLASSES:
        # Clips that are fetched with the other corpus lie in its folder.
        place = "" if corpus == "eval" or has_archive else ', video_dir="SafeSora/videos"'
        print(f"    from safe_rlhf_video import {PYTHON_CLASSES[corpus]}")
        for name in configs:
            print(f"    data = {PYTHON_CLASSES[corpus]}.load({str(out)!r}, {name!r}{place})")
    else:
        store = ""
        if has_archive and not extracted:
            store = f" --data.frame_store {folder}/frames"
            paths = " ".join(f"{folder}/{shlex.quote(name)}" for name in configs)
            print(
                f"    python scripts/prepare_videos.py --data {paths} --archive {folder}/{ARCHIVE} "
                f"--out {folder}/frames {CONFIG_SAMPLING}"
            )
        print(f"    deepspeed scripts/train_reward.py --config configs/joint.yaml --data.path {folder}{store}")
    if corpus != "eval" and not has_archive:
        print(f"The clips are in {ARCHIVE}, the same file in {REPOSITORIES['pairs']} and {REPOSITORIES['label']}.")
        if corpus == "label":
            print("Give the folder that it is unpacked in as video_dir.")


def format_bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
