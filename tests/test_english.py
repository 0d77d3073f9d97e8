"""English text is read as NLTK reads it: here, of a recording; where NLTK's data is installed, by NLTK itself."""

import json
import os
import re
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from hashlib import md5, sha256
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from listwise_preference.english.singular import singular, singulars
from listwise_preference.english.tagger import Tagger
from listwise_preference.english.text import English
from listwise_preference.english.tokens import token_spans, tokenize

from .conftest import ROOT
from .english_data import read_recording

NOBODY = "http://127.0.0.1:9"  # where no server listens


# ---- tokens ----


@pytest.mark.parametrize(
    ("sentence", "tokens"),
    [
        ("a dog—cat", ["a", "dog—cat"]),
        ("a dog's\nball", ["a", "dog's", "ball"]),
        ("the dog's ball", ["the", "dog", "'s", "ball"]),
        ('a "red" dog can\'t', ["a", "``", "red", "''", "dog", "ca", "n't"]),
        (
            "It costs $3.88 (roughly 3,36 euros).",
            ["It", "costs", "$", "3.88", "(", "roughly", "3,36", "euros", ")", "."],
        ),
        ("I cannot; he's gonna...", ["I", "can", "not", ";", "he", "'s", "gon", "na", "..."]),
        ("'Tis the 'x' -- isn't it?", ["'T", "is", "the", "'", "x", "'", "--", "is", "n't", "it", "?"]),
        ("“Stop” is: 8:30, no.", ["“", "Stop", "”", "is", ":", "8:30", ",", "no", "."]),
    ],
)
def test_tokens_of_a_sentence(sentence: str, tokens: list[str]) -> None:
    """As NLTK 3.8.1 has them, by hand; later versions differ in the first two."""
    assert tokenize(sentence) == tokens


def test_each_token_stands_in_the_text() -> None:
    text = "He said: \"No, ``it'' isn't  \n mine.\""
    tokens = tokenize(text)
    assert [text[start:end] for start, end in token_spans(text, tokens)] == [
        '"' if token in ("``", "''") and text.count('"') and token not in text[start:end] else token
        for token, (start, end) in zip(tokens, token_spans(text, tokens), strict=True)
    ]


def same_readings(reader: English) -> None:
    recording = read_recording()
    assert len(recording["texts"]) > 2000
    for text in recording["texts"]:
        assert list(map(list, reader.sentences(text["text"]))) == text["sentences"]
        assert reader.tokens(text["text"]) == text["tokens"]
    assert sum(len(one["tokens"]) for one in recording["tagged"]) > 30_000
    for one in recording["tagged"]:
        assert [tag for _, tag in reader.tags(one["tokens"])] == one["tags"], one["tokens"]
    for word, forms in recording["forms"].items():
        assert [reader.is_written_small(word), reader.is_written_with_capital(word)] == forms, word


def test_the_recorded_texts_are_read_as_nltk_3_8_1_read_them(english_data: Path) -> None:
    """data/record_tags.py had NLTK 3.8.1 itself read them; what the tests read by is made of it."""
    same_readings(English())


def test_nltks_own_data_gives_the_recorded_readings(live_english: English) -> None:
    same_readings(live_english)


# ---- tags ----


def same_tags_as_nltks_tagger(reader: English) -> None:
    from nltk.tag.perceptron import PerceptronTagger

    tagger = PerceptronTagger()
    sequences = [one["tokens"] for one in read_recording()["tagged"]][::10]
    strange = "A 1999 T-shirt , 3 Xylophones & the _ -x 7th o'clock ... Zebras !"
    sequences += [[], ["?"], strange.split(" ")]
    for tokens in sequences:
        assert reader.tags(tokens) == tagger.tag(tokens)


def test_tags_are_those_of_nltks_tagger_with_the_same_data(english_data: Path) -> None:
    same_tags_as_nltks_tagger(English())


def test_tags_are_those_of_nltks_tagger_with_its_own_data(live_english: English) -> None:
    same_tags_as_nltks_tagger(live_english)


def test_a_tag_by_hand() -> None:
    """bias speaks for NN by 1; "run" and a TO before it for VB by 2 and .5: NN first, VB behind "to"."""
    weights = {"bias": {"NN": 1.0}, "i word run": {"VB": 0.75}, "i-1 tag TO": {"VB": 0.5}}
    assert Tagger(weights, {"to": "TO"}, ["NN", "VB", "TO"]).tags(["run", "to", "run"]) == ["NN", "TO", "VB"]


def test_of_equal_tags_the_last_by_name_wins_and_sums_keep_nltks_order() -> None:
    """0.1 + 0.2 is more than 0.3 in floating point, and NLTK adds the suffix before the word."""
    equal = {"bias": {"NN": 0.5, "VB": 0.5}}
    assert Tagger(equal, {}, ["VB", "NN"]).tags(["dog"]) == ["VB"]
    rounded = {"i suffix dog": {"NN": 0.1, "VB": 0.3}, "i word dog": {"NN": 0.2}}
    assert Tagger(rounded, {}, ["NN", "VB"]).tags(["dog"]) == ["NN"]


# ---- singulars ----


@pytest.mark.parametrize(
    ("plural", "one"),
    [
        ("people", "person"),
        ("men", "man"),
        ("firewomen", "firewoman"),
        ("grandchildren", "grandchild"),
        ("knives", "knife"),
        ("wine glasses", "wine glasses"),
        ("buses", "bus"),
        ("houses", "house"),
        ("cherries", "cherry"),
        ("bus", "bus"),
    ],
)
def test_singulars(plural: str, one: str) -> None:
    assert singular(plural) == one
    assert {plural, one} <= singulars(plural)


def test_what_a_word_may_be_the_plural_of_is_wide() -> None:
    assert {"glass", "glasses"} <= singulars("glasses")
    assert "dwarf" in singulars("dwarves") and "axe" in singulars("axes") and "ax" in singulars("axes")


def test_singulars_agree_with_wordnet() -> None:
    """WordNet's lemmas of AMBER's words, less what is a matter of taste and forms that nobody writes."""
    forms = json.loads((ROOT / "listwise_preference/scoring/data/lemma_forms.json").read_text())
    taste = {"people", "glasses", "earphones", "stairs"}
    no_words = {"buss", "busses", "camerae", "reeves", "rifves", "sunglasseses", "sunglassess", "tennises"}
    assert len(forms) > 800
    for form, lemma in forms.items():
        if form not in taste | no_words and not form.endswith("sss") and form != "tenniss":
            assert singular(form) == lemma, form


# ---- NLTK's data ----


def read_english(prepare: str, home: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The tags of a sentence in a process that looks for NLTK's data below ``home`` alone."""
    program = f"""
import logging, nltk.data
nltk.data.path[:] = [{str(home / "nltk_data")!r}]
{prepare}
logging.basicConfig(format="%(message)s", level=logging.INFO)
from listwise_preference.english.text import English
from listwise_preference.english import nltk_data
from listwise_preference.errors import DataError
try:
    print(English().tags(["A", "dog"]), sorted(nltk_data.versions()))
except DataError as error:
    print(error)
"""
    env = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy") and key != "NLTK_DATA"}
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=env | {"HOME": str(home)} | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_missing_nltk_is_one_message(tmp_path: Path) -> None:
    program = "import sys; sys.modules['nltk.data'] = None"
    finished = read_english(program, tmp_path)
    assert "pip install 'nltk>=3.9.1'" in finished.stdout and len(finished.stdout.splitlines()) == 1, finished.stderr


def test_without_a_network_missing_data_is_one_message_with_the_command(tmp_path: Path) -> None:
    finished = read_english("", tmp_path, https_proxy=NOBODY, http_proxy=NOBODY)
    assert "python -m nltk.downloader punkt_tab averaged_perceptron_tagger_eng" in finished.stdout, finished.stderr
    assert len(finished.stdout.splitlines()) == 1


def test_score_says_what_is_missing_and_exits_with_2(tmp_path: Path) -> None:
    sample = ROOT / "data" / "sample" / "amber"
    finished = subprocess.run(
        [sys.executable, "score.py", "amber", sample / "answers.json", "--data", sample],
        cwd=ROOT,
        env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "NLTK_DATA": str(tmp_path), "https_proxy": NOBODY},
        capture_output=True,
        text=True,
    )
    if finished.returncode == 0:
        pytest.skip("NLTK's English data is in a folder that every user of this machine shares")
    assert finished.returncode == 2
    assert "python -m nltk.downloader punkt_tab averaged_perceptron_tagger_eng" in finished.stderr
    assert "Traceback" not in finished.stderr


@contextmanager
def index_server(packages: Path) -> Iterator[str]:
    """A server with the files of a folder, on this machine."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(packages))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_missing_data_is_fetched_once_by_nltks_downloader(tmp_path: Path, english_data: Path) -> None:
    """From an index of NLTK's form that has the recorded data in place of NLTK's own."""
    (tmp_path / "home" / "nltk_data").mkdir(parents=True)
    with index_server(tmp_path) as url:
        entries = ""
        for subdir, package in (("tokenizers", "punkt_tab"), ("taggers", "averaged_perceptron_tagger_eng")):
            archive, folder = tmp_path / f"{package}.zip", english_data / subdir
            files = [file for file in (folder / package).rglob("*.*") if file.is_file()]
            with zipfile.ZipFile(archive, "w") as packed:
                for file in files:
                    packed.write(file, file.relative_to(folder))
            entry = {"id": package, "name": package, "subdir": subdir, "unzip": 1, "url": f"{url}/{archive.name}",
                     "size": archive.stat().st_size, "unzipped_size": sum(file.stat().st_size for file in files),
                     "checksum": md5(archive.read_bytes()).hexdigest(),
                     "sha256_checksum": sha256(archive.read_bytes()).hexdigest()}  # fmt: skip
            entries += "<package {}/>".format(" ".join(f'{key}="{value}"' for key, value in entry.items()))
        (tmp_path / "index.xml").write_text(f"<nltk_data><packages>{entries}</packages><collections/></nltk_data>")
        prepare = f"from nltk.downloader import Downloader; Downloader.DEFAULT_URL = '{url}/index.xml'\n"
        # Later versions of NLTK fetch nothing from this very machine unless they are told to.
        prepare += "from importlib.util import find_spec\nif find_spec('nltk.pathsec'):\n    "
        prepare += "import nltk.pathsec; nltk.pathsec.ENFORCE = False"
        first = read_english(prepare, tmp_path / "home")
        second = read_english(prepare, tmp_path / "home")
    tagged = "[('A', 'DT'), ('dog', 'NN')] ['averaged_perceptron_tagger_eng', 'punkt_tab']"
    assert first.stdout.strip() == second.stdout.strip() == tagged, first.stdout + first.stderr
    assert len(re.findall("^Fetching NLTK's", first.stderr, flags=re.MULTILINE)) == 2
    assert "Fetching" not in second.stderr
