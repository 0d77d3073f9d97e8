"""The world's files, in the forms that the programs read.

    python -m listwise_preference.small_world.data --scenes 400 --seed unseen --output runs/unseen

``write_scenes`` makes a folder that ``generate.py --benchmark amber`` and ``score.py amber --data`` take for AMBER, and
``make_image_lists.py --detector annotations`` for annotated images:

    image/1.png ...             the images
    annotations.jsonl           every visible object's box
    data/annotations.json       per question the truth, in AMBER's form
    data/query/query_all.json   "Describe this image." and four "Is there a ... in this image?" for each image
    data/query/query_generative.json  data/query/query_discriminative.json
    data/relation.json  data/safe_words.txt
    nltk_data                   for NLTK_DATA: its tagger for the world's few words, where NLTK's English data is not

``preference_pairs`` turns a model's own descriptions into pairs: the right description is chosen, the model's rejected.
"""

import json
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from listwise_preference import cli
from listwise_preference.files import write_atomic
from listwise_preference.small_world.scenes import KINDS, NATURAL, USUAL, Scene, World
from listwise_preference.small_world.texts import DESCRIBE, any_caption, existence_question, write_nltk_data

# Below the folder; an interrupted run may have left a partial file.
_WRITTEN = re.compile(
    r"image/[1-9]\d*\.png|nltk_data/.+|(annotations\.jsonl|data/(annotations|relation)\.json|data/safe_words\.txt"
    r"|data/query/query_(all|generative|discriminative)\.json)(\.partial-\d+)?"
)


def scenes(world: World, count: int, seed: int | str) -> list[Scene]:
    """As many scenes of the world; other seeds give others."""
    rng = random.Random(f"scenes {seed}")
    return [world.scene(rng) for _ in range(count)]


def image_name(number: int) -> str:
    """Below ``image/``, for the scene of this number, from 1."""
    return f"{number}.png"


def write_scenes(folder: Path, scenes: Sequence[Scene], seed: int = 0) -> Path:
    """Write the files above; ``seed`` decides what is asked. Files that are there already are written again, the
    same."""
    for below in ("image", "data/query"):
        (folder / below).mkdir(parents=True, exist_ok=True)
    rng = random.Random(f"questions {seed}")
    boxes: list[Mapping[str, Any]] = []
    descriptions: list[tuple[dict[str, Any], dict[str, Any]]] = []
    existence: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for number, scene in enumerate(scenes, start=1):
        name, visible = image_name(number), scene.visible
        scene.draw().save(folder / "image" / name)
        boxes += [
            {"img_path": name, "label": one.kind, "box": [one.box.left, one.box.top, one.box.right, one.box.bottom]}
            for one in scene.objects
            if one.kind in visible
        ]
        likely = [kind for kind in USUAL[scene.place] if kind not in visible]
        descriptions.append(
            ({"image": name, "query": DESCRIBE}, {"type": "generative", "truth": list(visible), "hallu": likely})
        )
        for kind in _asked_after(rng, visible, likely):
            truth = {"type": "discriminative-hallucination", "truth": "yes" if kind in visible else "no"}
            existence.append(({"image": name, "query": existence_question(kind)}, truth))
    numbered = list(enumerate([*descriptions, *existence], start=1))
    queries = [{"id": id_} | query for id_, (query, _) in numbered]
    write_json(folder / "data" / "query" / "query_all.json", queries)
    write_json(folder / "data" / "query" / "query_generative.json", queries[: len(descriptions)])
    write_json(folder / "data" / "query" / "query_discriminative.json", queries[len(descriptions) :])
    write_json(folder / "data" / "annotations.json", [{"id": id_} | truth for id_, (_, truth) in numbered])
    write_json(folder / "data" / "relation.json", {kind: [] for kind in KINDS})
    write_atomic(folder / "data" / "safe_words.txt", "image\n")
    write_nltk_data(folder / "nltk_data")
    write_lines(folder / "annotations.jsonl", boxes)
    return folder


def _asked_after(rng: random.Random, visible: Sequence[str], likely: Sequence[str]) -> list[str]:
    """Four kinds: at most two visible ones, a usual one that is not visible, and others that are not."""
    asked = rng.sample(visible, min(2, len(visible))) + rng.sample(likely, min(1, len(likely)))
    others = [kind for kind in KINDS if kind not in visible and kind not in asked]
    return asked + rng.sample(others, 4 - len(asked))


def mentioned(text: str) -> list[str]:
    """The kinds that a text names, in its order."""
    return [word for word in re.findall("[a-z]+", text) if word in KINDS]


def preference_pairs(
    scenes: Sequence[Scene], descriptions: Iterable[tuple[int, str]], *, matched: bool = True, seed: int = 0
) -> list[dict[str, Any]]:
    """Pairs from a model's own descriptions that name something absent; at most one for each scene.

    Args:
        descriptions: number of the scene, from 1, and a description of it; several for a scene are tried in order.
        matched: keep a description only where it names as many kinds as the right one, so that length gives no hint.
        seed: decides how the right descriptions are worded.

    The right description names every visible object and nothing else.
    """
    rng = random.Random(f"pairs {seed}")
    pairs: dict[int, dict[str, Any]] = {}
    for number, text in descriptions:
        visible, named = scenes[number - 1].visible, mentioned(text)
        if number in pairs or set(named) <= set(visible) or not visible:
            continue
        if matched and (len(named) != len(visible) or len(set(named)) != len(named)):
            continue
        pairs[number] = {
            "id": number,
            "img_path": image_name(number),
            "prompt": DESCRIBE,
            "chosen": any_caption(rng, scenes[number - 1].place, visible),
            "rejected": text,
        }
    return [pairs[number] for number in sorted(pairs)]


def write_json(file: Path, content: object) -> None:
    """JSON, at once or not at all."""
    write_atomic(file, json.dumps(content, indent=1) + "\n")


def write_lines(file: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """JSON lines, at once or not at all."""
    write_atomic(file, "".join(json.dumps(record) + "\n" for record in records))


def foreign(folder: Path) -> str | None:
    """The first file below a folder that no finished run of ``write_scenes`` left there."""
    files = sorted(file for file in folder.rglob("*") if not file.is_dir())
    names = [file.relative_to(folder).as_posix() for file in files]
    finished = "annotations.jsonl" in names  # written last
    return next((name for name in names if not finished or not _WRITTEN.fullmatch(name)), None)


def main(argv: Sequence[str] | None = None) -> None:
    """Write natural scenes; images that an earlier run with more scenes left are removed."""
    parser = cli.Parser(__doc__)
    add = parser.add_argument
    add("--scenes", type=cli.count, required=True, help="how many")
    add("--seed", default="unseen", help="a word or a number; another one gives other scenes")
    add("--difficulty", type=cli.share, default=NATURAL.difficulty, help="0 to 1")
    add("--output", type=cli.folder, required=True, help="folder: new, empty, or written by this command")
    given = parser.parse_args(argv)
    folder: Path = given.output
    if other := foreign(folder):
        parser.error(f"argument --output: {folder} holds {other}, which is not an earlier run's; name a new folder")
    world = replace(NATURAL, difficulty=given.difficulty)
    write_scenes(folder, scenes(world, given.scenes, given.seed))
    for image in (folder / "image").glob("*.png"):
        if int(image.stem) > given.scenes:
            image.unlink()
    print(f"wrote {folder}")


if __name__ == "__main__":
    main()
