"""Model folders on a Hugging Face hub: "owner/name", or "owner/name@revision"."""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path

from safe_rlhf_video.errors import CheckpointError

# All that a model folder is read from; code and pickles are never fetched.
PATTERNS = ("*.json", "*.safetensors", "README.md", "*tokenizer.model", "*merges.txt", "*vocab.txt", "*.jinja")

_HUB_ID = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?:@([\w./-]+))?", re.ASCII)


def parse_hub_id(name: str) -> tuple[str, str | None] | None:
    """Repository and revision of "owner/name" or "owner/name@revision"; None where a name can be neither."""
    match = _HUB_ID.fullmatch(name)
    return (match[1], match[2]) if match else None


@lru_cache(maxsize=64)
def fetch_model(repository: str, revision: str | None = None) -> Path:
    """The folder of the hub's cache with a model repository's files; what is not there yet is fetched.

    A process asks once: all that it reads of a repository is of one commit, and a loaded scorer asks no more.

    Args:
        revision: a branch, tag or commit; None is the newest of the main branch.

    Raises:
        CheckpointError: there is no such repository or revision, or the hub cannot be asked and the cache has no copy.
    """
    from huggingface_hub import constants, snapshot_download

    # HTTPError is that of the HTTP library in use, which changes with major versions.
    from huggingface_hub.errors import (
        GatedRepoError,
        HTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    hub = constants.ENDPOINT
    try:
        return Path(snapshot_download(repository, revision=revision, allow_patterns=list(PATTERNS)))
    except RevisionNotFoundError as error:
        raise CheckpointError(
            f"{repository}: has no revision {revision!r} on {hub}; give a branch, tag or commit of it"
        ) from error
    except GatedRepoError as error:
        raise CheckpointError(
            f"{repository}: {hub} wants to know who asks; accept its terms there and set HF_TOKEN"
        ) from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{repository}: no such file or folder here, and no model on {hub}, or not one for you; correct the name, "
            "or set HF_TOKEN for a private one"
        ) from error
    except LocalEntryNotFoundError as error:
        cause = error.__cause__ or error
        reason = "HF_HUB_OFFLINE is set" if isinstance(cause, OfflineModeIsEnabled) else f"no answer: {_line(cause)}"
        raise CheckpointError(
            f"{repository}: no such file or folder here, no whole copy in the cache, and {hub} cannot be asked "
            f"({reason}); correct the path, or fetch it once online"
        ) from error
    except (HTTPError, OSError, ValueError) as error:  # a ValueError: a name that no repository can have
        raise CheckpointError(
            f"{repository}: no such file or folder here, and not to be fetched from {hub} ({_line(error)}); correct "
            "the name, or check network and disk and try again"
        ) from error


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
