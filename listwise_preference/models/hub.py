"""What can be known of the hub before torch is imported: a name that it cannot give, an upload that cannot succeed.

Its own client tries again for half a minute before it says so.
"""

import urllib.error
import urllib.request
from pathlib import Path

from listwise_preference.errors import ModelError

_PATIENCE = 1.5  # seconds; a hub that is slower than that is left to its own client


def check_model(name: str, revision: str | None = None) -> None:
    """Refuse a name that is no folder, not in the hub's cache, and not to be had from the hub.

    Raises:
        ModelError: it is no name of a model, or the hub cannot be reached.
    """
    if Path(name).is_dir():
        return
    from huggingface_hub import try_to_load_from_cache

    try:
        if isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str):
            return
    except ValueError:
        raise ModelError(f"cannot load the model {name}: no such folder, and no name that the hub can have") from None
    if problem := _unreachable():
        raise ModelError(f"cannot load the model {name}: no such folder, and not in the hub's cache; {problem}")


def check_upload(token: str | None, folder: str) -> None:
    """Refuse ``--push_to_hub`` where it cannot succeed.

    Raises:
        ModelError: there is no token, or the hub cannot be reached.
    """
    from huggingface_hub import get_token

    problem = _unreachable()
    if problem is None and token is None and get_token() is None:
        problem = "there is no token; get one with: hf auth login"
    if problem:
        raise ModelError(
            f"--push_to_hub: {problem}; or train without it, and upload the adapter later: hf upload NAME {folder}"
        )


def _unreachable() -> str | None:
    """Why nothing can be had from the hub; ``None`` where it answers, or may do so later."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    try:
        with urllib.request.urlopen(urllib.request.Request(constants.ENDPOINT, method="HEAD"), timeout=_PATIENCE):
            return None
    except (urllib.error.HTTPError, TimeoutError):
        return None
    except OSError as error:  # URLError is one
        reason = getattr(error, "reason", error)
        return None if isinstance(reason, TimeoutError) else f"the hub cannot be reached ({reason})"
