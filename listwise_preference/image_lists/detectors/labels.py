"""Words of a text and labels of a data set: which of them name the same thing.

A phrase and a label match exactly (singular or plural), else by the table of broader words, else when the label is the
last word of the phrase ("frying pan" and "pan") or the phrase the last word of the label ("shuttle" and
"space shuttle").

A label may have several names ("Monitor/TV" of Objects365, "building, edifice" of ADE20K) and a note that tells its
meanings apart ("bat_(animal)" of LVIS). "Bat" is this label, but "baseball bat" is not: its last word may have any of
the meanings. "Other" says nothing ("Other Shoes", "wall-other" of COCO-Stuff).
"""

import functools
import re
from itertools import pairwise

from listwise_preference.english.singular import singulars

# A word -> labels of broader meaning. A phrase and a label match when either is a meaning of the other: the phrase
# "person" finds boxes labelled "man", and "man" those labelled "person"; "man" never finds "woman". The broader words
# are mostly COCO's labels.
_BROADER_TABLE = """
man, woman, boy, girl, child, adult, teenager, human, parent: person
kid, baby, toddler: child, person
guy, gentleman, father, grandfather, groom: man, person
lady, mother, grandmother, bride: woman, person
player, skier, snowboarder, surfer, skateboarder, rider, cyclist, driver, pedestrian, worker, chef, passenger: person
batter, pitcher, catcher, umpire, referee, goalkeeper, astronaut, photographer, lifeguard, cowboy: person
policewoman, businesswoman, saleswoman, fisherwoman: woman, person
policeman, fisherman, fireman, businessman, salesman, cameraman, mailman, postman, workman, sportsman: man, person
craftsman, repairman, doorman, horseman, serviceman, airman: man, person
police officer, firefighter, soldier, farmer, waiter, waitress, doctor, nurse, teacher, student, musician: person
dog, cat, bird, horse, cow, sheep, elephant, bear, zebra, giraffe, moose, fish: animal
puppy, doggy, hound: dog, animal
kitten, kitty: cat, animal
seagull, gull, pigeon, parrot, duck, goose, owl, eagle, swan: bird, animal
bull, calf, ox, cattle: cow, animal
pony, foal: horse, animal
lamb: sheep, animal
car, truck, bus, train, motorcycle, bicycle, boat, airplane: vehicle
sedan, taxi, cab, suv, automobile, jeep: car, vehicle
pickup, lorry: truck, vehicle
bike, tricycle: bicycle, vehicle
motorbike, moped, scooter: motorcycle, vehicle
plane, aeroplane, aircraft, jet, jetliner: airplane, vehicle
ship, canoe, kayak, sailboat, yacht: boat, vehicle
sofa, loveseat: couch
television, tv set, monitor: tv
phone, cellphone, mobile phone, smartphone: cell phone
laptop computer, notebook computer: laptop
table, desk: dining table
plant, houseplant: potted plant
ball, football, soccer ball, basketball, baseball, tennis ball: sports ball
purse, bag: handbag
mug, teacup: cup
parasol: umbrella
doughnut: donut
fridge: refrigerator
remote control: remote
hair dryer: hair drier
rucksack: backpack
luggage: suitcase
"""
_BROADER = {
    word.strip(): {label.strip() for label in labels.split(",")}
    for words, _, labels in (line.partition(":") for line in _BROADER_TABLE.split("\n"))
    for word in words.split(",")
    if labels
}
# Compounds that are not a kind of their last word.
_NOT_ITS_LAST_WORD = {"hot dog", "teddy bear", "sea horse", "sea lion", "guinea pig", "prairie dog", "fire hydrant"}
_NOTE = re.compile(r"\([^()]*\)|\[[^\[\]]*\]")
_BETWEEN_NAMES = re.compile(r"[/,;|]|\bor\b")
_OTHER = re.compile(r"^others? | others?$")


def plain(label: str) -> str:
    """A label in lower case, its words apart by single spaces."""
    return " ".join(label.lower().replace("_", " ").replace("-", " ").split())


def match(phrase: str, label: str) -> int | None:
    """How near a phrase and a label are: 0 the same, 1 by the table, 2 by the last word of one; None: another thing."""
    phrases = _forms(plain(phrase))
    kinds = [kind for name, noted in _names(label) if (kind := _match(phrases, _forms(name), noted)) is not None]
    return min(kinds, default=None)


def _match(phrases: frozenset[str], labels: frozenset[str], noted: bool) -> int | None:
    if phrases & labels:
        return 0
    if any(_BROADER.get(one, set()) & labels for one in phrases) or any(
        _BROADER.get(one, set()) & phrases for one in labels
    ):
        return 1
    if (not noted and _last_words(phrases) & labels) or _last_words(labels) & phrases:
        return 2
    # The same word written in two and in one: "Head Phone".
    return 0 if {one.replace(" ", "") for one in phrases} & {one.replace(" ", "") for one in labels} else None


@functools.lru_cache(maxsize=1 << 12)
def _names(label: str) -> tuple[tuple[str, bool], ...]:
    """The label's names, first the whole of it as it stands, and whether a note narrows their meaning."""
    parts = [_OTHER.sub("", plain(part)) for part in _BETWEEN_NAMES.split(_NOTE.sub(" / ", label.lower()))]
    # "Cutting/chopping Board" is a cutting board too.
    shared = [f"{one} {other.partition(' ')[2]}" for one, other in pairwise(parts) if " " in other and " " not in one]
    noted = _NOTE.search(label) is not None
    return tuple(({plain(label): False} | dict.fromkeys(filter(None, parts + shared), noted)).items())


@functools.lru_cache(maxsize=1 << 14)
def _forms(name: str) -> frozenset[str]:
    return frozenset(singulars(name))


def _last_words(words: frozenset[str]) -> set[str]:
    return {word.rpartition(" ")[2] for word in words if " " in word and word not in _NOT_ITS_LAST_WORD}
