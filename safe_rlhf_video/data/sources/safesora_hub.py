"""Fetches SafeSora's corpora from the Hugging Face hub; an interrupted download goes on where it stopped."""

from __future__ import annotations

import glob
import hashlib
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from safe_rlhf_video.data.sources.archive import ExtractReport, extract_clips
from safe_rlhf_video.errors import ConfigError, SafeRLHFVideoError
from safe_rlhf_video.files import make_folder, put_in_place
from safe_rlhf_video.progress import progress_bar
from safe_rlhf_video.wording import size

REPOSITORIES = {
    "pairs": "PKU-Alignment/SafeSora",
    "label": "PKU-Alignment/SafeSora-Label",
    "eval": "PKU-Alignment/SafeSora-Eval",
}
ARCHIVE = "videos.tar.gz"
QUICK_BYTES = 2**24  # a file that is read in a moment needs no bar
BLOCK_BYTES = 2**22


@dataclass(frozen=True)
class RemoteFile:
    """A file as the hub describes it.

    Attributes:
        name: its path within the repository.
        size: bytes.
        digest: SHA-256 of a large file (64 digits); of a small one git's blob id, a SHA-1 (40 digits).
    """

    name: str
    size: int
    digest: str


@dataclass(frozen=True)
class DownloadPlan:
    """What a download will fetch.

    Attributes:
        repository, revision, commit: what is fetched; the commit is that of the revision.
        out: the folder to fetch to.
        extract: whether the archive is unpacked too.
        files: all files, those that are here already included.
        arrived: name of a file that is still to fetch -> bytes that an earlier run has fetched.
        needed: bytes that are still to be written.
        free: bytes that are free in `out`.
    """

    repository: str
    revision: str
    commit: str
    out: Path
    extract: bool
    files: tuple[RemoteFile, ...]
    arrived: Mapping[str, int]
    needed: int
    free: int


def plan_download(corpus: str, out: Path, revision: str, *, with_videos: bool, extract: bool) -> DownloadPlan:
    """Asks the hub for a corpus's files and finds out which of them are missing in a folder.

    Args:
        corpus: "pairs", "label" or "eval".
        out: the folder; made if need be.
        revision: a commit, tag or branch.
        with_videos: whether to fetch the archive of the clips.
        extract: whether the archive will be unpacked, which needs room as well.

    Raises:
        SafeRLHFVideoError: the hub cannot be reached, refuses, or answers nonsense.
        ConfigError: a file of another corpus or revision is in the folder, the folder cannot be written, or there is
            no archive to unpack.
    """
    repository = REPOSITORIES[corpus]
    with _explained(repository, revision):
        commit, files = _list_files(repository, revision)
        files = [file for file in files if with_videos or file.name != ARCHIVE]
        if extract and not any(file.name == ARCHIVE for file in files):
            raise ConfigError(f"--extract: there is no {ARCHIVE} to unpack; leave --extract out")
        out.mkdir(parents=True, exist_ok=True)
        arrived: dict[str, int] = {}
        needed = 0
        for file in files:
            path = out / file.name
            if path.exists() and not _is_whole(path, file):
                raise ConfigError(
                    f"{path}: is damaged, or of another corpus or revision, and is left alone; delete it, or give "
                    "another folder as --out"
                )
            if not path.exists():
                arrived[file.name] = _bytes_arrived(out, file)
                needed += file.size - arrived[file.name]
            if extract and file.name == ARCHIVE:
                # Clips do not shrink in an archive: unpacked they take about its size again.
                unpacked = sum(path.stat().st_size for path in (out / "videos").glob("*/*.mp4"))
                needed += max(0, file.size - unpacked)
        free = shutil.disk_usage(out).free
    return DownloadPlan(repository, revision, commit, out, extract, tuple(files), arrived, needed, free)


def fetch_files(plan: DownloadPlan) -> ExtractReport | None:
    """Fetches all missing files of a plan, and unpacks the archive if the plan says so.

    Raises:
        SafeRLHFVideoError: as in `plan_download`, or what arrived has another checksum.
        ConfigError: the disk has not enough space or cannot be written.
        SampleError: the archive is not to be trusted, as in `extract_clips`.
    """
    if plan.needed > plan.free:
        raise ConfigError(
            f"{plan.out}: {size(plan.needed)} are needed and {size(plan.free)} are free; free space, give another "
            f"folder as --out, or leave {ARCHIVE} out with --no_videos"
        )
    with _explained(plan.repository, plan.revision):
        for file in plan.files:
            if file.name in plan.arrived:
                _fetch(plan, file)
        return extract_clips(plan.out / ARCHIVE, plan.out / "videos") if plan.extract else None


def _list_files(repository: str, revision: str) -> tuple[str, list[RemoteFile]]:
    """The commit that a revision names, and its files."""
    from huggingface_hub import HfApi

    try:
        info = HfApi().dataset_info(repository, revision=revision, files_metadata=True, timeout=30)
        commit, siblings = str(info.sha), info.siblings or []
        found = [(file.rfilename, file.size, file.lfs.sha256 if file.lfs else file.blob_id) for file in siblings]
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, OSError):  # the hub's errors, some of which are ValueErrors too
            raise
        raise SafeRLHFVideoError(f"{_hub()} answered no list of files; check the network and HF_ENDPOINT") from error
    files = []
    for name, num_bytes, digest in found:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or "\\" in name:
            raise SafeRLHFVideoError(
                f"{repository}: its file {name!r} would lead out of the folder; nothing is fetched"
            )
        if num_bytes is None or digest is None or len(digest) not in (40, 64):
            raise SafeRLHFVideoError(f"{repository}: {_hub()} gave no size or checksum of {name}; try again later")
        if name != ".gitattributes":
            files.append(RemoteFile(name, num_bytes, digest))
    return commit, files


def _fetch(plan: DownloadPlan, file: RemoteFile) -> None:
    """Fetches a file, from where an earlier run stopped, and renames it into place when its checksum is right."""
    # Not hf_hub_download: in huggingface_hub 2.4 it deletes what an interrupted download has left.
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    partial = _partial_path(plan.out, file)
    make_folder(partial.parent)
    for other in partial.parent.glob(f".{glob.escape(PurePosixPath(file.name).name)}.*.partial"):
        if other != partial:
            other.unlink()
    arrived = plan.arrived[file.name]
    try:
        with (
            _counting_bar(file.size, arrived, file.name) as count,
            partial.open("r+b" if arrived else "wb") as target,
        ):
            target.seek(arrived)
            http_get(
                # The hub redirects to a signed address that is valid for a while; each attempt asks for a new one.
                hf_hub_url(plan.repository, file.name, repo_type="dataset", revision=plan.commit),
                _CountedFile(target, count),
                resume_size=arrived,
                headers=build_hf_headers() | {"Accept-Encoding": "identity"},
                expected_size=file.size,
            )
    finally:
        if file.size and partial.is_file() and not partial.stat().st_size:
            partial.unlink()
    if not _is_whole(partial, file):
        partial.unlink()
        raise SafeRLHFVideoError(
            f"{plan.out / file.name}: what arrived does not have the checksum that {_hub()} gives and was deleted; "
            "run the same command again"
        )
    put_in_place(partial, plan.out / file.name)


class _CountedFile:
    """A file that is being fetched; calls `count` with the number of bytes that it has grown by."""

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
            # http_get's own errors are OSErrors too: the name shows that this one is the disk's.
            error.filename = self._file.name
            raise
        self._count(len(block))
        return len(block)

    def truncate(self) -> int:
        """The hub sends the file from its beginning again."""
        before = os.fstat(self._file.fileno()).st_size
        num_bytes = self._file.truncate()
        self._count(num_bytes - before)
        return num_bytes


def _partial_path(out: Path, file: RemoteFile) -> Path:
    """Where a file grows; another revision of it grows elsewhere."""
    path = out / file.name
    return path.with_name(f".{path.name}.{file.digest[:12]}.partial")


def _bytes_arrived(out: Path, file: RemoteFile) -> int:
    partial = _partial_path(out, file)
    num_bytes = partial.stat().st_size if partial.is_file() else 0
    return num_bytes if num_bytes <= file.size else 0


def _is_whole(path: Path, file: RemoteFile) -> bool:
    """Whether a file has the size and checksum that the hub gives."""
    if not path.is_file() or path.stat().st_size != file.size:
        return False
    if len(file.digest) == 64:
        digest = hashlib.sha256()
    else:
        digest = hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
    with path.open("rb") as opened, _counting_bar(file.size, 0, f"checking {file.name}") as count:
        while block := opened.read(BLOCK_BYTES):
            digest.update(block)
            count(len(block))
    return digest.hexdigest() == file.digest


@contextmanager
def _counting_bar(num_bytes: int, done: int, description: str) -> Iterator[Callable[[int], Any]]:
    """A bar of bytes for a file that takes a while; gives the function that moves it on."""
    if num_bytes <= QUICK_BYTES:
        yield lambda count: None
        return
    with progress_bar(num_bytes, done, description, "B") as bar:
        yield bar.update


@contextmanager
def _explained(repository: str, revision: str) -> Iterator[None]:
    """Turns what huggingface_hub and the disk raise into one line that says what to do."""
    # Our own bars count on after an interruption; the library's warnings about retries would interrupt them.
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
    page = f"{_hub()}/datasets/{repository}"
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
        raise SafeRLHFVideoError(f"{repository}: {_hub()} answered with status {status}; later {again}") from error
    except (HTTPError, OSError) as error:
        # An error of the disk names a file, those of the network do not.
        if isinstance(error, OSError) and error.filename is not None and error.errno is not None:
            raise ConfigError(
                f"{error.filename}: cannot be read or written ({error.strerror}); free space or check the rights, "
                f"then {again}"
            ) from error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise SafeRLHFVideoError(
            f"{repository}: no connection to {_hub()} ({reason}); check the network, then {again}"
        ) from error


def _hub() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT
