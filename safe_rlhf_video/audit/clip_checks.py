"""Finds the same content under two names: clips by the SHA-256 of their files, text responses by their words."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from safe_rlhf_video.audit.sections import ClipChecks, IdenticalPairs, ResponseChecks
from safe_rlhf_video.audit.splits import NUM_EXAMPLES, Split
from safe_rlhf_video.progress import progress_bar

_CHUNK = 1 << 20

Members = set[tuple[str, str]]  # (split, video name)


def audit_clips(
    splits: Sequence[Split], read_content: bool, known_hashes: Mapping[str, str] | None = None
) -> ClipChecks:
    """Finds clips of equal content.

    Files of different size differ, so only clips that share their size with another clip are read. Several names of one
    file are duplicates even if the file is missing.

    Args:
        splits: the splits with the clips; a name must mean the same video in all of them.
        read_content: whether to read clips at all.
        known_hashes: video name -> SHA-256 of its file in hex, from a frame store; these clips may be missing and are
            not read again.
    """
    known = known_hashes or {}
    files, refused = _find_files(splits)
    sizes = {file: size for file in files if (size := _size(file)) is not None}
    digests: dict[Path, str] = {}
    for file, members in files.items():
        digest = next((known[name] for _, name in sorted(members) if name in known), None)
        if digest is not None:
            digests[file] = digest
    from_store = len(digests)
    # A missing clip with a known hash has no size: any file may be its duplicate.
    any_size = any(file not in sizes for file in digests)
    times = Counter(sizes.values())
    alone = {file for file, size in sizes.items() if times[size] == 1 and not any_size}
    unreadable: list[str] = []
    if read_content:
        unread = [file for file in sizes if file not in digests and file not in alone]
        unreadable = _read(unread, digests, files)
    contents: dict[str | Path, Members] = {}
    for file, members in files.items():
        contents.setdefault(digests.get(file, file), set()).update(members)
    duplicates, across = _group(contents.values())
    everything, present = _names(files, files), _names(files, sizes)
    compared = _names(files, alone | digests.keys())
    reason = None
    if not compared and not duplicates:
        what = "was read, as asked" if present else "is where the config says"
        reason = f"none of {len(everything):,} clips {what}"
    return ClipChecks(
        present=len(present),
        missing=len(everything) - len(present),
        compared=len(compared),
        refused=refused,
        unreadable=unreadable,
        hashed=len(digests) - from_store,
        from_store=from_store,
        duplicates=duplicates if reason is None else None,
        across_splits=across if reason is None else None,
        identical_pairs=_find_identical_pairs(splits, duplicates) if reason is None else None,
        reason=reason,
    )


def audit_responses(splits: Sequence[Split]) -> ResponseChecks | None:
    """Finds equal text responses under two names; None if no record has a response."""
    contents: dict[str, Members] = {}
    for split in splits:
        for video in split.videos:
            if video.response_text is not None:
                contents.setdefault(video.response_text, set()).add((split.name, video.name))
    if not contents:
        return None
    duplicates, across = _group(contents.values())
    return ResponseChecks(
        responses=len({name for members in contents.values() for _, name in members}),
        num_duplicates=len(duplicates),
        num_across_splits=len(across),
        duplicates=duplicates[:NUM_EXAMPLES],
        across_splits=across[:NUM_EXAMPLES],
        identical_pairs=_find_identical_pairs(splits, duplicates),
    )


def _find_files(splits: Sequence[Split]) -> tuple[dict[Path, Members], list[str]]:
    """Maps each clip file to its videos; also returns the names whose path leads out of the video folder."""
    files: dict[Path, Members] = {}
    refused: dict[str, None] = {}
    for split in splits:
        found, outside = split.video_files()
        refused.update(dict.fromkeys(outside))
        for name, file in found.items():
            files.setdefault(file, set()).add((split.name, name))
    return files, list(refused)


def _names(files: Mapping[Path, Members], chosen: Iterable[Path]) -> set[str]:
    return {name for file in chosen for _, name in files[file]}


def _read(unread: list[Path], digests: dict[Path, str], files: Mapping[Path, Members]) -> list[str]:
    """Adds the digests of files to `digests`; returns the names of unreadable ones."""
    unreadable: list[str] = []
    if not unread:
        return unreadable
    with progress_bar(len(unread), 0, "hashing clips", "clip") as progress:
        for file in unread:
            try:
                digests[file] = _hash_file(file)
            except OSError:
                unreadable += sorted({name for _, name in files[file]})
            progress.update()
    return unreadable


def _size(file: Path) -> int | None:
    """Returns the size of a file, or None if there is no file."""
    try:
        return file.stat().st_size if file.is_file() else None
    except OSError:
        return None


def _hash_file(file: Path) -> str:
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _find_identical_pairs(splits: Sequence[Split], duplicates: list[list[str]]) -> IdenticalPairs:
    """Finds comparisons whose two sides have the same content, so that their label means nothing."""
    group_of = {name: number for number, names in enumerate(duplicates) for name in names}
    found = [
        f"{split.name}: {pair.pair_id}"
        for split in splits
        for pair in split.pairs
        if group_of.get(pair.video_0.name, -1) == group_of.get(pair.video_1.name, -2)
    ]
    return IdenticalPairs(len(found), found[:NUM_EXAMPLES])


def _group(contents: Iterable[Members]) -> tuple[list[list[str]], list[list[str]]]:
    """Returns groups of different names with the same content, and the groups that span several splits."""
    duplicates, across = [], []
    for members in contents:
        names = sorted({name for _, name in members})
        if len(names) < 2:
            continue
        duplicates.append(names)
        if len({split for split, _ in members}) > 1:
            across.append(sorted(f"{split}: {name}" for split, name in members))
    return sorted(duplicates), sorted(across)
