"""Object HalBench and CHAIR: objects that a text names and the image's COCO annotations do not have.

Source of the rules: CHAIR (Rohrbach et al. 2018, github.com/LisaAnne/Hallucination) in the form that Object
HalBench's program gives it (eval/eval_gpt_obj_halbench.py of RLHF-V and RLAIF-V). An image's true objects
are those of its instances and of its five reference captions. The objects of a response are either its words
by a synonym table ("words"), or what a language model extracts from it ("extractor", the benchmark's way).
"""

import base64
import json
import re
import sys
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from listwise_preference.cli import Parser
from listwise_preference.data.ranked_images import image_kind
from listwise_preference.english.text import English, english
from listwise_preference.errors import DataError
from listwise_preference.files import (
    Record,
    expecting,
    listed,
    parse_json,
    read_json,
    read_records,
    read_text,
    write_atomic,
)
from listwise_preference.scoring.answers import Problems, first_of_each, first_text
from listwise_preference.scoring.interface import (
    BadRecord,
    Benchmark,
    Column,
    QuestionFormat,
    Scored,
    first_found,
    percent,
    required_text,
    sum_by_image,
)
from listwise_preference.scoring.judge import Judge, add_judge_options, fill, judge_of, read_template
from listwise_preference.scoring.result import Result, file_identity
from listwise_preference.scoring.words import DATA, Lemmas, load_lemmas

ANSWERS = 300
SHIPPED_SYNONYMS = DATA / "chair_synonyms.txt"
OUR_PROMPT = DATA / "object_extraction_prompt.txt"
TEXT_KEYS = ("caption", "text", "answer", "response")
EXTRACTION_TRIES = 5

# The names that Object HalBench's synonym table has beyond CHAIR's own.
OBJECT_HALBENCH_NAMES = {
    "brother": "person",
    "pedestrian": "person",
    "coffee table": "dining table",
    "remote control": "remote",
}

# "baby bird" and "passenger jet" name a bird and a jet, no person.
_ANIMALS = "bird cat dog horse sheep cow elephant bear zebra giraffe animal cub"
_VEHICLES = ("jet", "train")
# No objects of COCO, but their second words would be taken for one.
_NOT_OBJECTS = ("home plate", "train track")

# Longer than any file name: the value of "image" is then the image itself.
_INLINE_IMAGE = 300

TaggedWords = list[tuple[str, str]]


@dataclass(frozen=True)
class Caption:
    """One text about one image; ``objects`` are those in the responses file itself, if any."""

    image_id: int
    text: str
    question: str
    objects: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Mentions:
    """COCO objects in a text: the words as named, the object of each, and where each was found."""

    words: list[str]
    objects: list[str]
    places: list[int]


class ObjectWords:
    """The synonym table: which words name which of COCO's 80 objects.

    ``extra`` are names that a benchmark adds to the table's.
    """

    def __init__(self, path: Path, extra: Mapping[str, str] | None = None) -> None:
        self.object_of: dict[str, str] = {}
        for line in read_text(path).splitlines():
            if synonyms := [word.strip() for word in line.strip().split(", ")]:
                self.object_of.update(dict.fromkeys(synonyms, synonyms[0]))
        self.object_of.pop("", None)
        if not self.object_of:
            raise DataError(f"{path}: not a synonym table, which has one object a line: name, synonym, ...")
        self.object_of |= extra or {}
        self.source = f"{'shipped ' if path == SHIPPED_SYNONYMS else ''}{path.name}"
        if extra:
            self.source += f" and {', '.join(extra)}"
        self.double_words = {word: word for word in self.object_of if " " in word}
        self.double_words |= {word: word for word in _NOT_OBJECTS}
        self.double_words |= {f"{age} {animal}": animal for animal in _ANIMALS.split() for age in ("baby", "adult")}
        self.double_words |= {f"passenger {vehicle}": vehicle for vehicle in _VEHICLES}
        # "glas" is what some lemmatizers leave of glasses.
        self.double_words |= {"bow tie": "tie", "toilet seat": "toilet", "wine glas": "wine glass"}

    def join_double_words(self, words: Sequence[str]) -> list[tuple[str, int, bool]]:
        """Words with each known pair made one: the word, its place in the input, and whether it was a pair."""
        joined, place = [], 0
        while place < len(words):
            known = self.double_words.get(" ".join(words[place : place + 2]))
            joined.append((known or words[place], place, known is not None))
            place += 1 if known is None else 2
        return joined

    def mentions(self, words: Sequence[str], places: Sequence[int]) -> Mentions:
        """The words that name objects. A seat beside a toilet is no chair.

        ``places`` belong to the words before seats are taken out and are not shifted with them, as in the
        official program; only the reported places depend on it.
        """
        if "toilet" in words and "seat" in words:
            words = [word for word in words if word != "seat"]
        hits = [(word, place) for word, place in zip(words, places, strict=False) if word in self.object_of]
        return Mentions(
            [word for word, _ in hits],
            [self.object_of[word] for word, _ in hits],
            [place for _, place in hits],
        )


def caption_mentions(text: str, table: ObjectWords, words: English, lemmas: Lemmas) -> Mentions:
    """Objects named in a text, by its words: lower case, tokens, noun lemmas, double words, synonym table."""
    joined = table.join_double_words([lemmas.of(word) or word for word in words.tokens(text.lower())])
    return table.mentions([word for word, _, _ in joined], [place for _, place, _ in joined])


# ---- the texts ----


def _coco_id(*records: Record) -> int | None:
    """The first COCO id under image_id or image: a number, digits, or the name of a COCO image file."""
    for value in (record.get(key) for record in records for key in ("image_id", "image")):
        if type(value) is int:
            return value
        found = isinstance(value, str) and len(value) < _INLINE_IMAGE and re.search(r"(\d+)(\.\w+)?$", value)
        if found:
            return int(found[1])
    return None


def read_captions(path: Path, questions: Sequence[Record] | None) -> tuple[list[Caption], Problems]:
    """Responses or captions that can be scored, and what is wrong with the file.

    Reads JSON lines or a JSON list with ``image_id`` (or ``image``, a COCO file name) and a text under
    caption, text, answer or response, and CHAIR's own ``{"imgToEval": {...}}``. Records without an image
    take that of the question at their place, where ``questions`` are given. "Assistant:" is taken off, as in
    the official program.
    """
    sentences = []
    records = _chairs_own_records(path) or read_records(path)
    if questions is not None and len(questions) != len(records):
        sentences.append(f"{len(records)} responses for {len(questions)} questions")
    captions, wrong = [], []
    for number, record in enumerate(records, start=1):
        asked = questions[number - 1] if questions and number <= len(questions) else {}
        image_id = _coco_id(record, asked)
        text = first_text(record, TEXT_KEYS)
        question = record.get("prompt", record.get("question", asked.get("question", "")))
        objects = record.get("extract_objs")
        if image_id is None or text is None:
            wrong.append(number)
            continue
        given = tuple(map(str, objects)) if isinstance(objects, list) else None
        captions.append(Caption(image_id, text.replace("Assistant:", "").strip(), str(question), given))
    if wrong:
        sentences.append(
            f"no image_id (a COCO id) or no text under {', '.join(TEXT_KEYS)}: record {listed(wrong)}"
            + ("" if questions else " (give the benchmark's questions with --questions where responses lack the id)")
        )
    named = [f"image_id {one.image_id}" + (f": {one.question}" if one.question else "") for one in captions]
    captions, again = first_of_each(captions, named)
    if again:
        sentences.append(again)
    if not captions:
        sentences.append("no response in it belongs to a COCO image")
    wanted = len(questions or ())
    return captions, Problems(tuple(sentences), max(0, wanted - len(captions)), wanted)


def _chairs_own_records(path: Path) -> list[Record]:
    """The records of CHAIR's own {"imgToEval": {key: record}}; none of another file."""
    text = read_text(path)
    whole = parse_json(text, path) if '"imgToEval"' in text else None
    records = whole.get("imgToEval") if isinstance(whole, dict) else None
    return [one for one in records.values() if isinstance(one, dict)] if isinstance(records, dict) else []


# ---- what is in the images ----


def _annotation_files(folder: Path) -> list[tuple[Path, Path]]:
    """(instances, captions) files; validation first, because Object HalBench takes its 300 images there."""
    for year in (2014, 2017):
        pairs = [
            (folder / f"instances_{split}{year}.json", folder / f"captions_{split}{year}.json")
            for split in ("val", "train")
        ]
        if present := [pair for pair in pairs if all(path.is_file() for path in pair)]:
            return present
    raise DataError(
        f"{folder}: no COCO annotations (instances_val2014.json, captions_val2014.json) in it; they are in "
        "http://images.cocodataset.org/annotations/annotations_trainval2014.zip"
    )


def true_objects(
    folder: Path, image_ids: Iterable[int], table: ObjectWords, words: English, lemmas: Lemmas
) -> tuple[dict[int, set[str]], set[int]]:
    """Objects of each image by COCO's instances and reference captions, and the ids that are not in COCO.

    Reads no more files than it takes to find all images.
    """
    wanted = set(image_ids)
    objects: dict[int, set[str]] = {}
    for instances_path, captions_path in _annotation_files(folder):
        if len(objects) == len(wanted):
            break
        with expecting("COCO's instances and captions", folder):
            instances, captions = read_json(instances_path), read_json(captions_path)["annotations"]
            for image in instances["images"]:
                if image["id"] in wanted:
                    objects.setdefault(image["id"], set())
            category = {one["id"]: one["name"] for one in instances["categories"]}
            boxes = instances["annotations"]
            named = [(one["image_id"], category[one["category_id"]]) for one in boxes if one["image_id"] in objects]
            captioned = [(one["image_id"], one["caption"]) for one in captions if one["image_id"] in objects]
            for image_id, name in named:
                if name not in table.object_of:
                    raise DataError(f"{table.source}: no line for COCO's object {name!r}")
                objects[image_id].add(table.object_of[name])
            for image_id, caption in captioned:
                objects[image_id].update(caption_mentions(caption, table, words, lemmas).objects)
    return objects, wanted - set(objects)


# ---- objects by an extractor ----


def parse_objects(reply: str) -> list[str] | None:
    """The list in an extractor's reply, or None: a ```json block, else a last line that is a list.

    Reads what the official program reads, and an empty list without a block too.
    """
    block = re.search(r"```json\n(.*?)\n```", reply, re.DOTALL)
    for candidate in (block[1] if block else None, (reply.strip().split("\n") or [""])[-1]):
        try:
            value = parse_json(candidate, "the reply") if candidate else None
        except DataError:
            continue
        if isinstance(value, list):
            return [str(item) for item in value]
    return None


def extract_objects(captions: Sequence[Caption], template_path: Path, judge: Judge) -> list[list[str] | None]:
    """The extractor's list for each caption; None where it gave none in five tries.

    Responses of up to three words hold no objects and are not asked about, as in the official program.
    """
    template = read_template(template_path, ("question", "answer"))
    extracted: list[list[str] | None] = [[] if len(caption.text.split()) <= 3 else None for caption in captions]
    for attempt in range(EXTRACTION_TRIES):
        open_ = [number for number, objects in enumerate(extracted) if objects is None]
        if not open_:
            break
        asked = [fill(template, {"question": captions[n].question, "answer": captions[n].text}) for n in open_]
        # The official temperature, 0.2, gives a second try a chance to differ.
        replies = judge.replies(asked, temperature=0.2 if attempt else 0.0, attempt=attempt)
        for number, reply in zip(open_, replies, strict=True):
            extracted[number] = parse_objects(reply)
    return extracted


def nltk_tagger(table: ObjectWords, words: English, lemmas: Lemmas) -> Callable[[str], TaggedWords]:
    """(lemma, tag) of each word by NLTK; words of the synonym table are nouns whatever the tagger thinks."""

    def tag(text: str) -> TaggedWords:
        tagged = [(lemmas.of(token) or token, tag) for token, tag in words.tags(words.tokens(text))]
        return [(lemma, "NN" if lemma in table.object_of else tag) for lemma, tag in tagged]

    return tag


def spacy_tagger(model: str) -> Callable[[str], TaggedWords]:
    """(lemma, tag) of each word by an installed spaCy model; the official program's is en_core_web_trf."""
    try:
        import spacy

        nlp = spacy.load(model)
    except ImportError as error:
        raise DataError("--spacy_model: spaCy is not installed; get it with: pip install spacy") from error
    except OSError as error:
        raise DataError(
            f"--spacy_model {model}: not installed; get it with: python -m spacy download {model}"
        ) from error
    return lambda text: [(token.lemma_, token.tag_) for token in nlp(text)]


def refine_objects(extracted: Sequence[str], table: ObjectWords, tag: Callable[[str], TaggedWords]) -> list[str]:
    """Names as the table knows them: a name's double words, else its runs of nouns; each once, in order."""
    refined: list[str] = []
    for name in extracted:
        tagged = tag(f"a {name}")
        joined = table.join_double_words([lemma for lemma, _ in tagged])
        found = [word for word, _, is_pair in joined if is_pair]
        if not found:
            run: list[str] = []
            for lemma, part_of_speech in [*tagged, ("", "")]:
                if part_of_speech in ("NN", "NNS", "NNP", "NNPS"):
                    run.append(lemma)
                elif run:
                    found.append(" ".join(run))
                    run = []
        refined += found
    return list(dict.fromkeys(refined))


# ---- counting ----


def count_caption(caption: Caption, mentions: Mentions, truth: set[str]) -> tuple[Record, dict[str, int]]:
    """One text's record, with the official program's names, and what it adds to the sums."""
    wrong = [place for place, one in enumerate(mentions.objects) if one not in truth]
    share = len(wrong) / len(mentions.words) if mentions.words else 0.0
    record = {
        "image_id": caption.image_id,
        "caption": caption.text,
        "mscoco_hallucinated_words": [[mentions.words[n], [mentions.words[n], mentions.objects[n]]] for n in wrong],
        "mscoco_gt_words": sorted(truth),
        "mscoco_generated_words": [list(pair) for pair in zip(mentions.words, mentions.objects, strict=True)],
        "hallucination_idxs": [mentions.places[n] for n in wrong],
        "metrics": {"CHAIRs": int(bool(wrong)), "CHAIRi": share},
    }
    counts = {
        "sentences": 1,
        "sentences_with_objects": int(bool(mentions.words)),
        "hallucinated_sentences": int(bool(wrong)),
        "words": len(caption.text.strip().split(" ")),
        "mentions": len(mentions.objects),
        "hallucinated_mentions": len(wrong),
        "found_objects": len(truth & set(mentions.objects)),
        "true_objects": len(truth),
    }
    return record, counts


def metrics(sums: Mapping[str, float]) -> Record:
    """Unrounded shares; None where the official program would divide by zero.

    ``chair_s`` is over all responses, ``chair_s_with_objects`` over those that name at least one COCO object
    (the official CHAIRs and CHAIRs_refine).
    """

    def share(of: str, over: str) -> float | None:
        return sums.get(of, 0) / sums[over] if sums.get(over) else None

    return {
        "chair_s": share("hallucinated_sentences", "sentences"),
        "chair_s_with_objects": share("hallucinated_sentences", "sentences_with_objects"),
        "chair_i": share("hallucinated_mentions", "mentions"),
        "object_recall": share("found_objects", "true_objects"),
        "mean_words": share("words", "sentences"),
    }


def official_metrics(sums: Mapping[str, float]) -> Record:
    """The same under the official program's names, with its counts."""
    ours = metrics(sums)

    def rest(value: float | None) -> float | None:
        return None if value is None else 1 - value

    return {
        "CHAIRs": ours["chair_s"],
        "CHAIRs_refine": ours["chair_s_with_objects"],
        "CHAIRi": ours["chair_i"],
        "obj_rec": ours["object_recall"],
        "sentence_num": float(sums["sentences"]),
        "coco_sentence_num": float(sums["sentences_with_objects"]),
        # The official name notwithstanding, these are true objects that were found.
        "coco_word_count": float(sums["found_objects"]),
        "gt_word_count": float(sums["true_objects"]),
        "avg_word_len": ours["mean_words"],
        "correct_rate": rest(ours["chair_s_with_objects"]),
        "object_correct_rate": rest(ours["chair_i"]),
    }


def table(result: Result) -> str:
    """The result for people to read."""
    official = result["overall_metrics"]
    named = f"CHAIR_s, of the {official['coco_sentence_num']:.0f} that name an object "
    return "\n".join(
        [
            f"CHAIR_s, of all {official['sentence_num']:.0f} responses          {percent(result['chair_s'])}",
            named + percent(result["chair_s_with_objects"]),
            f"CHAIR_i                            {percent(result['chair_i'])}",
            f"Object recall                      {percent(result['object_recall'])}",
            f"Words per response                 {result['mean_words']:6.1f}",
        ]
    )


# ---- for the programs ----


def _read_question(record: Record, image_root: Path) -> tuple[str, Path, bool]:
    question, image_id, image = required_text(record, "question"), _coco_id(record), record.get("image")
    if image_id is None:
        raise BadRecord('no COCO id under "image_id"')
    if not isinstance(image, str):
        names = [f"{prefix}{image_id:012d}.jpg" for prefix in ("COCO_val2014_", "COCO_train2014_", "")]
        return question, first_found([image_root / name for name in names]), False
    if len(image) <= _INLINE_IMAGE:
        return question, image_root / image, False
    path = image_root / f"{image_id:012d}.jpg"
    if not path.is_file():
        try:
            content = base64.b64decode(image, validate=True)
        except ValueError as error:
            raise BadRecord(f'"image" is neither a file name nor an image in base64: {error}') from error
        # The name is made of a number: it cannot lead out of the folder. What is written there must be an image.
        if image_kind(content) is None:
            raise BadRecord('"image" is base64 of something that is no image')
        write_atomic(path, content)
    return question, path, False


def _write_answer(record: Record, response: str) -> Record:
    return {"image_id": _coco_id(record), "question": record["question"], "answer": response}


def _add_options(parser: Parser) -> None:
    add = parser.add_argument
    add("--coco_annotations", type=Path, required=True, help="folder with instances_*.json and captions_*.json")
    add("--questions", type=Path, help="the benchmark's questions, where responses have no image_id")
    add("--synonyms", type=Path, help="synonym table (default: CHAIR's own, shipped)")
    add("--lemmas", metavar="FILE|wordnet", help="default: shipped table")


def _add_object_halbench_options(parser: Parser) -> None:
    _add_options(parser)
    add = parser.add_argument
    sources = "the response's words, a language model, or the list extract_objs in each record"
    add("--objects", choices=("words", "extractor", "given"), help=f"where objects come from: {sources}")
    add("--extractor_base_url", "--judge_base_url", help="OpenAI-compatible endpoint (then --objects is extractor)")
    add("--extractor_model", "--judge_model", help="model that extracts objects, by its name there")
    add("--extractor_prompt", "--judge_prompt", type=Path, help="file with {question} and {answer} (default: ours)")
    add("--spacy_model", help="noun tagger of extracted names (default: NLTK; official: en_core_web_trf)")
    add_judge_options(parser)


def _score_object_halbench(args: Namespace) -> Scored:
    mode = args.objects or ("extractor" if args.extractor_base_url else "words")
    scored = _score(args, mode, OBJECT_HALBENCH_NAMES)
    if scored.counts["answers"] == ANSWERS or scored.problems.sentences:
        return scored
    note = f"{scored.counts['answers']} responses; Object HalBench has {ANSWERS}."
    return replace(scored, notes=[*scored.notes, note])


def _score(args: Namespace, mode: str, more_names: Mapping[str, str]) -> Scored:
    questions = read_records(args.questions) if args.questions else None
    captions, problems = read_captions(args.answers, questions)
    table = ObjectWords(args.synonyms) if args.synonyms else ObjectWords(SHIPPED_SYNONYMS, more_names)
    lemmas = load_lemmas(args.lemmas, "chair_lemma_forms.json")
    if mode == "given" and (without := [n for n, one in enumerate(captions, start=1) if one.objects is None]):
        raise DataError(f"{args.answers}: no list extract_objs in record {listed(without)}")
    if mode == "extractor" and not (args.extractor_base_url and args.extractor_model):
        raise DataError("--objects extractor needs --extractor_base_url and --extractor_model")
    problems.refuse_unless(args.partial and bool(captions), args.answers)

    words = english()
    wanted = {caption.image_id for caption in captions}
    truth, unknown = true_objects(args.coco_annotations, wanted, table, words, lemmas)
    if unknown:
        problems = problems.and_also(f"images that are not in COCO: {listed(unknown)}")
        problems.refuse_unless(args.partial and unknown != wanted, args.answers)
        captions = [caption for caption in captions if caption.image_id in truth]
    protocol: Result = {"objects": mode, "synonyms": table.source, "lemmas": lemmas.source}
    notes = []
    if mode == "words":
        mentions = [caption_mentions(one.text, table, words, lemmas) for one in captions]
    else:
        extracted: list[list[str] | None] = [list(one.objects or ()) for one in captions]
        if mode == "extractor":
            prompt = args.extractor_prompt or OUR_PROMPT
            judge = judge_of(args, args.extractor_base_url, args.extractor_model)
            extracted = extract_objects(captions, prompt, judge)
            print(f"Extractor: {json.dumps(judge.describe())}", file=sys.stderr)
            protocol |= {"extractor": judge.model, "prompt": file_identity(prompt)}
            if lost := [number for number, objects in enumerate(extracted, start=1) if objects is None]:
                problems = problems.and_also(f"the extractor gave no list of objects for response {listed(lost)}")
                problems.refuse_unless(args.partial and len(lost) < len(captions), args.answers)
        captions = [one for one, objects in zip(captions, extracted, strict=True) if objects is not None]
        if args.spacy_model:
            tag = spacy_tagger(args.spacy_model)
        else:
            tag = nltk_tagger(table, words, lemmas)
            notes.append("nouns by NLTK's tagger; the official way is --spacy_model en_core_web_trf.")
        protocol["nouns"] = f"spaCy {args.spacy_model}" if args.spacy_model else "NLTK"
        refined = [refine_objects(one, table, tag) for one in extracted if one is not None]
        mentions = [table.mentions(names, range(len(names))) for names in refined]
    counted = [count_caption(one, found, truth[one.image_id]) for one, found in zip(captions, mentions, strict=True)]
    images = sum_by_image((str(record["image_id"]), counts) for record, counts in counted)
    sums: Counter[str] = sum(images.values(), Counter())
    return Scored(
        {**metrics(sums), "overall_metrics": official_metrics(sums)},
        images,
        metrics,
        counts={"answers": len(captions)},
        protocol=protocol,
        problems=problems,
        notes=notes,
        only_in_file={"sentences": [record for record, _ in counted]},
    )


_COLUMNS = (
    Column("CHAIR_s", "chair_s", scale=100, better="lower"),
    Column("CHAIR_i", "chair_i", scale=100, better="lower"),
    Column("recall", "object_recall", scale=100),
)
OBJECT_HALBENCH = Benchmark(
    name="object-halbench",
    help="Object HalBench: objects in responses about 300 COCO images",
    add_options=_add_object_halbench_options,
    score=_score_object_halbench,
    table=table,
    columns=_COLUMNS,
    questions=QuestionFormat(
        "obj_halbench_300_with_image.jsonl",
        _read_question,
        _write_answer,
        json_lines=True,
        source="github.com/RLHF-V/RLAIF-V has the questions with their images, in eval/data",
    ),
    metrics=metrics,
)
CHAIR = Benchmark(
    name="chair",
    help="CHAIR: objects in captions of any COCO images",
    add_options=_add_options,
    score=lambda args: _score(args, "words", {}),
    table=table,
    columns=_COLUMNS,
    metrics=metrics,
)
