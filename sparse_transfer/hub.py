"""The Hugging Face Hub, asked once: whether it answers, what it holds, what is cached of it.

The Hub's own client retries for a minute where there is no network. Here one question with a
timeout decides between downloading and the cache.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from sparse_transfer.errors import UserError

TIMEOUT = 10.0  # seconds to wait for the Hub's first answer


@contextlib.contextmanager
def errors_explained(name: str) -> Iterator[None]:
    """Turn what goes wrong while fetching weights into a `UserError` that says what to do."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"The weights of {name} could not be loaded.",
            str(error).partition("\n")[0] or type(error).__name__,
            "They must be downloaded once from the Hugging Face Hub. Without a network, give a "
            "local file (`weights: PATH.safetensors`), a folder (`local-dir:PATH`) or "
            "`weights: random`.",
        ) from error


def unreachable(repository: str) -> str:
    """Why the Hub does not answer for a repository; empty if it does."""
    from huggingface_hub import HfApi

    identity, _, revision = repository.partition("@")
    try:
        HfApi().model_info(identity, revision=revision or None, timeout=TIMEOUT)
    except Exception as error:  # the HTTP library, and so its errors, change between versions
        return str(error).partition("\n")[0] or type(error).__name__
    return ""


def downloaded(repository: str, file: str) -> str:
    """The path of a file after it was downloaded, or found unchanged in the cache."""
    from huggingface_hub import hf_hub_download

    identity, _, revision = repository.partition("@")
    return hf_hub_download(identity, file, revision=revision or None)


def cached(repository: str, file: str) -> str | None:
    """The path of a file that was downloaded before, or None."""
    from huggingface_hub import try_to_load_from_cache

    identity, _, revision = repository.partition("@")
    found = try_to_load_from_cache(identity, file, revision=revision or None)
    return found if isinstance(found, str) else None
