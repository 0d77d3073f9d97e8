"""English text as tagged words: NLTK splits and tags, the lists of ``object_words`` correct known errors."""

import re
from collections.abc import Iterator
from typing import NamedTuple

from listwise_preference.english.singular import singular
from listwise_preference.english.text import English, english
from listwise_preference.english.tokens import tokenize
from listwise_preference.image_lists.english.object_words import (
    ADJECTIVES,
    COLOURS,
    COMPOUNDS,
    IMPERATIVES,
    ING_MODIFIERS,
    ING_THINGS,
    PREPOSITIONS,
    THINGS,
    VERBS,
)

# Text on a sign, set phrases, and the camera that took the image.
_SET_ASIDE = re.compile(
    r"""\b(?:say|says|said|read|reads|reading|saying|words?|labell?ed|named|called|titled|written)\W{0,3}"[^"\n]*"
    |\bin\ (?:this|that|any|either)\ case\b|\bon\ the\ other\ hand\b|\b(?:right|left)-hand\b|\bof\ course\b
    |\b(?:at|for|to|towards?|facing|into|from)\ the\ camera\b|^\s*(?:[-*+]|\(?\d{1,3}[.)])(?=\s)""",
    re.IGNORECASE | re.VERBOSE | re.MULTILINE,
)
# "A no parking sign" is there: what it forbids is no denial. Without the article, as in "there is no parking sign",
# it is one.
_FORBIDS = re.compile(
    rf"""(\b(?:an?|the|another|each|every|one|two|three|four|five|several|some|many)
    \ (?:(?:{"|".join(sorted(COLOURS | ADJECTIVES))})\ ){{0,2}}["']?)
    ((?:no|not|do\ not|don't)(?:[ -](?!(?:and|or|but|a|an|the|is|are|one|other)\b)[\w-]+){{1,4}}?["']?)
    (?=\ (?:sign|symbol|notice|poster|placard|sticker|decal|marking|banner|plaque|zone|area|lane)s?\b)""",
    re.IGNORECASE | re.VERBOSE,
)
_STRANGE = re.compile(r"[^\w\s.,;:!?'\"()&%$-]|_")
_PLAIN = str.maketrans("’‘“”—–…•/", "''\"\";;.-,")
# The tokenizer parts single letters from a quote before them; here 'words' too, but not the 's of it's.
_OPENING_QUOTE = re.compile(r"(?<!\w)'(?!(?:re|ve|ll|m|t|s|d|n)\b)(?=\w)", re.IGNORECASE)
_WORD = re.compile(r"[a-zß-öø-ÿ]+(?:-[a-zß-öø-ÿ]+)*")
_COUNT = re.compile(r"two|three|four|five|six|seven|eight|nine|ten|several|some|many|a|an|another|\d+")
_ADJECTIVE_ENDINGS = ("ful", "ous", "able", "ible", "al", "ive", "est", "ish", "less", "ic", "ed", "ing", "er")


class Token(NamedTuple):
    """``word`` in lower case; ``tag`` of the Penn Treebank, but NN for every noun and NAME for proper names."""

    word: str
    tag: str
    start: int
    end: int


def sentences(text: str) -> Iterator[list[Token]]:
    """Tagged sentences; a line break ends a sentence."""
    reader = english()
    # Every step keeps the length, so that positions hold in the text as given.
    plain = _SET_ASIDE.sub(lambda match: " " * len(match.group()), text.translate(_PLAIN))
    plain = _FORBIDS.sub(lambda match: match[1] + " " * len(match[2]), _STRANGE.sub(" ", plain))
    for line in re.finditer(r"[^\n\r]+", plain):
        for start, end in reader.sentences(line.group()):
            tokens = _tagged(plain, line.start() + start, line.start() + end, reader)
            if tokens:
                yield tokens


def _tagged(plain: str, start: int, end: int, reader: English) -> list[Token]:
    sentence = plain[start:end]
    forms = tokenize(_OPENING_QUOTE.sub("' ", sentence))
    # Capitals throughout, or on the first word, would make names of nouns.
    shouted = sentence.isupper()
    tagged = reader.tags([form.lower() if shouted or i == 0 else form for i, form in enumerate(forms)])
    tokens: list[Token] = []
    for i, (form, (_, tag)) in enumerate(zip(forms, tagged, strict=True)):
        at = plain.find(form, start, end)
        # The tokenizer writes quotes its own way; no object needs them.
        if at < 0:
            continue
        start = at + len(form)
        if tag.startswith("NN"):
            tag = "NAME" if not shouted and _is_name(forms, i, tag, tokens, reader) else "NN"
        tokens.append(Token(form.lower(), tag, at, start))
    for i in range(len(tokens)):
        tokens[i] = tokens[i]._replace(tag=_better_tag(tokens, i))
    return tokens


def _is_name(forms: list[str], i: int, tag: str, before: list[Token], reader: English) -> bool:
    """Whether a noun is a proper name, by its place and by the forms that Punkt's corpus has of it."""
    form = forms[i]
    if not form[0].isupper() or form.lower() in ("tv", "tvs", "suv", "suvs", "pc"):
        return False
    in_lower_case = reader.is_written_small(form.lower())
    next_has_capital = i + 1 < len(forms) and forms[i + 1][0].isupper()
    if not before:
        return not in_lower_case and (reader.is_written_with_capital(form.lower()) or next_has_capital)
    if not tag.startswith("NNP"):
        return False
    if next_has_capital or before[-1].tag == "NAME":
        return True
    return not in_lower_case and not any(_COUNT.fullmatch(token.word) for token in before[-3:])


def _better_tag(tokens: list[Token], i: int) -> str:
    """The tag of a word, corrected by the lists; the words before it have theirs already."""
    word, tag, after = tokens[i].word, tokens[i].tag, tokens[i + 1] if i + 1 < len(tokens) else Token("", ".", 0, 0)
    before = tokens[i - 1] if i > 0 else Token("", ".", 0, 0)
    one = singular(word)
    if tag == "NAME" or not _WORD.fullmatch(word) or len(word) < 2:
        return "SYM" if tag == "NN" else tag
    if word.endswith("ing"):
        acts = before.tag.startswith(("NN", "VB", "RB")) or before.word in ("while", "by", "after", "before", "when")
        if after.tag == "NN" and not acts and (word in ING_MODIFIERS or f"{word} {singular(after.word)}" in COMPOUNDS):
            return "NN"
        return "VBG" if tag == "NN" and word not in ING_THINGS else tag
    third = singular(tokens[i + 2].word) if i + 2 < len(tokens) else ""
    if after.tag == "NN" and COMPOUNDS & {f"{word} {singular(after.word)}", f"{word} {after.word} {third}"}:
        return "NN"
    if word in ADJECTIVES:
        return "JJ"
    if word in PREPOSITIONS:
        return "IN"
    if i == 0 and word in IMPERATIVES:
        return "VB"
    if tag == "NN" and before.tag == "NN" and one in VERBS and after.word != "of":
        many = before.word != singular(before.word) or any(token.word == "and" for token in tokens[max(0, i - 5) : i])
        if after.tag in ("IN", "DT", "PRP$", "RB", "TO", "JJ", "CD", "VBG") and (word != one or many):
            return "VBP"
    if one in THINGS and not tag.startswith("VB"):
        return "NN"
    ends_phrase = before.tag in ("DT", "POS", "PRP$") and after.tag in ("VBZ", "VBD", "VBP", "MD", "IN")
    if tag == "JJ" and ends_phrase and word not in COLOURS and not word.endswith(_ADJECTIVE_ENDINGS):
        return "NN"
    return tag
