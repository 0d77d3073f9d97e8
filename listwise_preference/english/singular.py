"""The singular of English nouns."""

import functools
import re

_IRREGULAR = """
    people:person men:man women:woman children:child feet:foot teeth:tooth geese:goose mice:mouse oxen:ox dice:die
    cacti:cactus knives:knife wives:wife lives:life leaves:leaf loaves:loaf halves:half shelves:shelf
    bookshelves:bookshelf wolves:wolf calves:calf scarves:scarf elves:elf thieves:thief hooves:hoof pies:pie ties:tie
    neckties:necktie movies:movie cookies:cookie brownies:brownie smoothies:smoothie hoodies:hoodie selfies:selfie
    veggies:veggie birdies:birdie zombies:zombie calories:calorie shoes:shoe horseshoes:horseshoe canoes:canoe
    toes:toe hoes:hoe axes:axe lenses:lens gases:gas canvases:canvas menus:menu emus:emu aches:ache caches:cache
    headaches:headache mustaches:mustache moustaches:moustache avalanches:avalanche quiches:quiche"""
_SINGULAR = dict(form.split(":") for form in _IRREGULAR.split())
# Words in -s that name one thing, or that have no other form in use.
_SAME = """
    glasses sunglasses eyeglasses goggles binoculars scissors shears pliers tweezers tongs pants jeans trousers shorts
    leggings tights overalls pajamas pyjamas briefs headphones earphones clothes stairs headquarters gas lens canvas
    christmas atlas thermos rhinoceros tennis iris trellis chassis basis pelvis oasis axis series species lacrosse
    always electronics graphics news this his yes"""
_ENDS_IN_S = frozenset(_SAME.split())


@functools.lru_cache(maxsize=1 << 14)
def singular(noun: str) -> str:
    """The singular of a noun or compound in lower case; a singular stays as it is."""
    before, gap, word = noun.rpartition(" ")
    return before + gap + _singular_word(word)


def _singular_word(word: str) -> str:
    if word in _SINGULAR:
        return _SINGULAR[word]
    if word.endswith("children"):
        return word[:-3]
    if re.search(r"(?:wo|e|r|s|d|w|n|h|t)men$", word):
        return f"{word[:-3]}man"
    if not word.endswith("s") or word.endswith(("ss", "us")) or len(word) < 3 or word in _ENDS_IN_S:
        return word
    if word.endswith("ies"):
        return f"{word[:-3]}y"
    if word.endswith(("ches", "shes", "xes", "sses", "zzes", "oes")) or re.search(r"[^ao]uses$", word):
        return word[:-2]
    return word[:-1]


def singulars(noun: str) -> set[str]:
    """All that a noun or compound in lower case may be the plural of.

    Of glasses that is the glasses themselves, :func:`singular`, and by its ending the glass.
    """
    endings = (("ies", "y"), ("ves", "f"), ("es", ""), ("s", ""))
    by_ending = {noun.removesuffix(plural) + one for plural, one in endings if noun.endswith(plural) and len(noun) > 3}
    return {noun, singular(noun), *by_ending}
