"""The commands of score.py, each from its parsed arguments to its printed and written result."""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

from listwise_preference.errors import DataError
from listwise_preference.files import listed, read_records
from listwise_preference.scoring import amber, compare, mmhal, object_halbench, pope
from listwise_preference.scoring.answers import Problems
from listwise_preference.scoring.bootstrap import bootstrap
from listwise_preference.scoring.judge import Judge, default_cache
from listwise_preference.scoring.result import Result, file_identity, report, versions
from listwise_preference.scoring.similarity import OFFICIAL_MODEL, load_similarity
from listwise_preference.scoring.words import NltkWords, load_lemmas

Images = Mapping[str, Mapping[str, float]]


def whole(
    args: argparse.Namespace,
    numbers: Result,
    problems: Problems,
    protocol: Result,
    counts: Mapping[str, int],
    images: Images,
    metrics: Callable[[Mapping[str, float]], Mapping[str, Any]],
) -> Result:
    """The result of one scorer: its numbers, and what made them."""
    result = {
        "benchmark": args.benchmark,
        "partial": bool(problems.sentences),
        "problems": list(problems.sentences),
        **numbers,
        "counts": {**counts, "pictures": len(images)},
        "protocol": protocol,
        "answers": file_identity(args.answers),
    }
    if args.bootstrap:
        result["bootstrap"] = bootstrap(list(images.values()), metrics, args.bootstrap, args.seed)
    return {**result, "versions": versions()}


def score_amber(args: argparse.Namespace) -> None:
    """AMBER."""
    if args.image_root and not args.report:
        raise DataError("--image_root is for the images of the page: it needs --report DIR")
    if args.image_root and not args.image_root.is_dir():
        raise DataError(f"{args.image_root}: no such folder; give the one with AMBER_1.jpg and so on")
    data = amber.load_amber(args.data)
    answers, problems = amber.check(read_records(args.answers), data)
    problems.refuse_unless(args.partial and bool(answers), args.answers)
    if args.bootstrap and any(data.questions[answer.id].image is None for answer in answers):
        raise DataError(f"{args.data}: --bootstrap draws images and needs data/query/query_all.json to know them")
    if args.report:
        from listwise_preference.scoring.amber_page.report import start_report, write_report

        start_report(args.report)
    similarity = load_similarity(args.similarity, data.vocabulary, args.save_similarity)
    lemmas = load_lemmas(args.lemmas, "lemma_forms.json")
    judged = list(amber.judge_answers(answers, data, similarity, lemmas, args.yes_no))
    scores = amber.score_answers(judged)
    numbers = amber.metrics(scores.counters)
    descriptions = sum(data.questions[answer.id].kind == "generative" for answer in answers)
    counts = {
        "answers": len(answers),
        "descriptions": descriptions,
        "yes_no": len(answers) - descriptions,
        "reread": scores.reread,
        "unreadable": len(scores.unreadable),
    }
    protocol = {
        "rules": "AMBER inference.py",
        "yes_no": args.yes_no,
        "similarity": similarity.describe(),
        "lemmas": lemmas.source,
    }
    notes = []
    if descriptions and not similarity.official:
        notes.append(
            f"similar words by {similarity.describe()['source']} ({similarity.source}); AMBER's own program "
            f"uses {OFFICIAL_MODEL}, and its CHAIR, Cover, Hal and Cog may differ a little."
        )
    if scores.unreadable:
        notes.append(
            f"unreadable yes/no answers, neither yes nor no and counted as wrong: {len(scores.unreadable)} "
            f"(ids {listed(scores.unreadable)})"
        )
    if args.yes_no == "word" and scores.reread:
        notes.append(
            f"answers that are not exactly Yes or No and were read by their first yes or no: {scores.reread}"
            "; AMBER's own program counts such answers as wrong, as --yes_no exact does."
        )
    if args.yes_no == "release":
        notes.append(
            "yes and no were read by the released code's rule, which is not to be trusted: it finds no in "
            "words such as snow, in the question too. Use it only to compare with that code's numbers."
        )
    if numbers["discriminative"]:
        absent = [kind for kind in ("existence", "attribute", "relation") if not numbers[kind]]
        if absent:
            notes.append(f"no {' and no '.join(absent)} answers in the file: the row 'all' is without them.")
    result = whole(
        args,
        {**numbers, "counters": scores.counters},
        problems,
        protocol,
        counts,
        scores.images,
        amber.metrics_of_sums,
    )
    report(result, amber.table, notes, args.output)
    if args.report:
        page = write_report(args.report, judged, result, notes, args.image_root)
        print(f"Open {page} in a browser", file=sys.stderr)


def score_coco(args: argparse.Namespace) -> None:
    """Object HalBench, and CHAIR on captions of any COCO images."""
    questions = read_records(args.questions) if args.questions else None
    captions, problems = object_halbench.read_captions(args.answers, questions)
    if args.synonyms:
        table = object_halbench.ObjectWords(args.synonyms)
    else:
        extra = object_halbench.OBJECT_HALBENCH_NAMES if args.benchmark == "object-halbench" else None
        table = object_halbench.ObjectWords(object_halbench.SHIPPED_SYNONYMS, extra)
    lemmas = load_lemmas(args.lemmas, "chair_lemma_forms.json")
    mode = getattr(args, "objects", "words")
    if mode == "given" and (without := [n for n, one in enumerate(captions, start=1) if one.objects is None]):
        raise DataError(f"{args.answers}: no list extract_objs in record {listed(without)}")
    if mode == "extractor" and not (args.extractor_base_url and args.extractor_model):
        raise DataError("--objects extractor needs --extractor_base_url and --extractor_model")
    problems.refuse_unless(args.partial and bool(captions), args.answers)

    words = NltkWords()
    truth, unknown = object_halbench.true_objects(
        args.coco_annotations, (caption.image_id for caption in captions), table, words, lemmas
    )
    if unknown:
        problems = Problems((*problems.sentences, f"images that are not in COCO: {listed(unknown)}"))
        problems.refuse_unless(args.partial and len(unknown) < len({c.image_id for c in captions}), args.answers)
        captions = [caption for caption in captions if caption.image_id in truth]
    protocol: Result = {"objects": mode, "synonyms": table.source, "lemmas": lemmas.source}
    notes = []
    if mode == "words":
        mentions = [object_halbench.caption_mentions(one.text, table, words, lemmas) for one in captions]
    else:
        extracted: list[list[str] | None] = [list(one.objects or ()) for one in captions]
        if mode == "extractor":
            prompt = args.extractor_prompt or object_halbench.OUR_PROMPT
            judge = make_judge(args, args.extractor_base_url, args.extractor_model)
            extracted = object_halbench.extract_objects(captions, prompt, judge)
            print(f"Extractor: {json.dumps(judge.describe())}", file=sys.stderr)
            protocol |= {"extractor": judge.model, "prompt": file_identity(prompt)}
            if lost := [number for number, objects in enumerate(extracted, start=1) if objects is None]:
                lost_sentence = f"the extractor gave no list of objects for answer {listed(lost)}"
                problems = Problems((*problems.sentences, lost_sentence))
                problems.refuse_unless(args.partial and len(lost) < len(captions), args.answers)
        captions = [one for one, objects in zip(captions, extracted, strict=True) if objects is not None]
        if args.spacy_model:
            tag = object_halbench.spacy_tagger(args.spacy_model)
        else:
            tag = object_halbench.nltk_tagger(table, words, lemmas)
            notes.append("nouns by NLTK's tagger; the official way is --spacy_model en_core_web_trf.")
        protocol["nouns"] = f"spaCy {args.spacy_model}" if args.spacy_model else "NLTK"
        refined = [object_halbench.refine_objects(one, table, tag) for one in extracted if one is not None]
        mentions = [table.mentions(names, range(len(names))) for names in refined]
    records, images = object_halbench.score_captions(captions, mentions, truth)
    sums: Counter[str] = sum(images.values(), Counter())
    if args.benchmark == "object-halbench" and len(captions) != object_halbench.ANSWERS and not problems.sentences:
        notes.append(f"{len(captions)} answers; Object HalBench has {object_halbench.ANSWERS}.")
    result = whole(
        args,
        {**object_halbench.metrics(sums), "overall_metrics": object_halbench.official_metrics(sums)},
        problems,
        protocol,
        {"answers": len(captions)},
        images,
        object_halbench.metrics,
    )
    report(result, object_halbench.table, notes, args.output, {"sentences": records})


def score_mmhal(args: argparse.Namespace) -> None:
    """MMHal-Bench."""
    template = read_records(args.questions) if args.questions else None
    records, problems = mmhal.check(mmhal.join_template(read_records(args.answers), template))
    problems.refuse_unless(args.partial and bool(records), args.answers)
    prompt = args.judge_prompt or mmhal.OUR_PROMPT
    judge = make_judge(args, args.judge_base_url, args.judge_model)
    replies = mmhal.judge_answers(records, prompt, judge)
    print(f"Judge: {json.dumps(judge.describe())}", file=sys.stderr)
    images = mmhal.count_images(records, replies)
    sums: Counter[str] = sum(images.values(), Counter())
    types = list(dict.fromkeys(record["question_type"] for record in records))
    protocol = {
        "judge": judge.model,
        "temperature": 0.0,
        "prompt": {
            "whose": "given by --judge_prompt" if args.judge_prompt else "ours",
            **file_identity(prompt),
        },
    }
    notes = []
    if not args.judge_prompt:
        notes.append("judged with our prompt; published numbers use the official one (--judge_prompt FILE).")
    if empty := sum(not record["model_answer"] for record in records):
        notes.append(f"{empty} answers are empty and were judged as they are.")
    result = whole(
        args,
        mmhal.metrics(sums, types),
        problems,
        protocol,
        {"answers": len(records), "unparsed": sums["unparsed"]},
        images,
        lambda drawn: mmhal.metrics(drawn, types),
    )
    judged = [
        {**record, "judge_reply": reply, "rating": mmhal.rating_in(reply)}
        for record, reply in zip(records, replies, strict=True)
    ]
    report(result, mmhal.table, notes, args.output, {"judged": judged})


def score_pope(args: argparse.Namespace) -> None:
    """POPE."""
    pairs, problems = pope.check(read_records(args.answers), read_records(args.questions))
    problems.refuse_unless(args.partial and bool(pairs), args.answers)
    images = pope.count_images(pairs)
    cells: Counter[str] = sum(images.values(), Counter())
    counters = {name: cells[name] for name in ("TP", "FP", "TN", "FN")}
    result = whole(
        args,
        {**pope.metrics(cells), "counters": counters},
        problems,
        {"rules": "POPE evaluate.py", "questions": args.questions.name},
        {"answers": len(pairs)},
        images,
        pope.metrics,
    )
    report(result, pope.table, [], args.output)


def score_awareness(args: argparse.Namespace) -> None:
    """The object-awareness probe, the one scorer that runs a model."""
    from listwise_preference.probe import command as awareness  # the others do without Pillow and what else it takes

    awareness.score_awareness(args)


def compare_runs(args: argparse.Namespace) -> None:
    """Scores files side by side."""
    names = args.names or compare.run_names(args.scores)
    if len(names) != len(args.scores):
        raise DataError(f"--names: {len(names)} names for {len(args.scores)} files")
    results = [compare.read_result(path) for path in args.scores]
    models = list(compare.PAPER) if args.paper and not args.paper_model else args.paper_model or []
    rows = compare.rows_by_benchmark(names, results, models)
    text = compare.markdown(rows)
    remarks = compare.notes(names, results)
    print(text)
    for remark in remarks:
        print(f"\nNote: {remark}")
    if args.markdown:
        args.markdown.parent.mkdir(parents=True, exist_ok=True)
        args.markdown.write_text(
            "\n\n".join([text, *(f"Note: {remark}" for remark in remarks)]) + "\n", encoding="utf-8"
        )
        print(f"\nWritten to {args.markdown}")
    if args.plot:
        compare.plot(rows, args.plot)
        print(f"\nDrawn in {args.plot}")
    print()
    print(json.dumps({name: {row.name: dict(row.values) for row in runs} for name, runs in rows.items()}))


def make_judge(args: argparse.Namespace, base_url: str, model: str) -> Judge:
    """The judge the command line describes."""
    return Judge(
        base_url,
        model,
        args.judge_cache or default_cache(),
        retries=args.judge_retries,
        timeout_s=args.judge_timeout,
        workers=args.judge_workers,
    )
