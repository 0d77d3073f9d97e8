"""NLTK's English data: found where NLTK looks for it, fetched once where it is missing, named in results.

It has no licence that would let us ship it.
"""

import hashlib
import io
import json
import logging
from typing import TYPE_CHECKING

from listwise_preference.errors import DataError

if TYPE_CHECKING:
    from nltk.tokenize.punkt import PunktParameters

    from listwise_preference.english.tagger import Tagger

COMMAND = "python -m nltk.downloader punkt_tab averaged_perceptron_tagger_eng"
_PUNKT, _TAGGER = "tokenizers/punkt_tab/english/", "taggers/averaged_perceptron_tagger_eng/"
_FILES = {
    _PUNKT: ("abbrev_types.txt", "collocations.tab", "ortho_context.tab", "sent_starters.txt"),
    _TAGGER: tuple(f"averaged_perceptron_tagger_eng.{part}.json" for part in ("weights", "tagdict", "classes")),
}

logger = logging.getLogger("listwise_preference")
_versions: dict[str, str] = {}


def versions() -> dict[str, str]:
    """The packages that this process has read, each with the first half of a SHA-256 over its files."""
    return dict(_versions)


def read_data() -> "tuple[PunktParameters, Tagger]":
    """What Punkt knows of English sentences, and the tagger.

    Data that is missing is fetched by NLTK's own downloader, and one line says so.

    Raises:
        DataError: NLTK is not installed, or its data is missing and cannot be fetched.
    """
    try:
        from nltk.data import find
        from nltk.tokenize.punkt import load_punkt_params
    except ImportError as error:
        raise DataError(f"English text is read with NLTK ({error}); get it: pip install 'nltk>=3.9.1'") from None
    from listwise_preference.english.tagger import Tagger

    contents = {}
    for folder, names in _FILES.items():
        package = folder.split("/")[1]
        try:
            find(folder)
        except LookupError:
            _fetch(package)
        contents[folder] = [find(folder + name).open().read() for name in names]
        digests = b"".join(hashlib.sha256(content).digest() for content in contents[folder])
        _versions[package] = hashlib.sha256(digests).hexdigest()[:32]
    return load_punkt_params(find(_PUNKT)), Tagger(*map(json.loads, contents[_TAGGER]))


def _fetch(package: str) -> None:
    from nltk.downloader import Downloader

    downloader = Downloader()
    logger.info("Fetching NLTK's %s, once, into %s", package, downloader.default_download_dir())
    try:
        downloader.download(package, quiet=True, raise_on_error=True, print_error_to=io.StringIO())
    except (OSError, ValueError) as error:
        raise DataError(
            f"NLTK's English data ({package}) is neither in NLTK_DATA nor in the usual folders, and cannot be fetched"
            f" ({' '.join(str(error).split())}); get it where there is a network, and set NLTK_DATA to its folder:"
            f" {COMMAND}"
        ) from None
