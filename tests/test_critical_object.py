"""What the texts name: expectations written by reading the sentences, as a careful person would list the objects."""

import json
from pathlib import Path

import pytest

from listwise_preference.data.pairs import Pair
from listwise_preference.english.singular import singular
from listwise_preference.image_lists.detectors.labels import match
from listwise_preference.image_lists.english.critical_object import Phrase, candidate_phrases, denied_objects

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.usefixtures("english_data")

SENTENCES = {
    # Plurals
    "Two zebras graze beside three giraffes in a grassy field.": "zebra, giraffe, field",
    "Several people are standing on the beach with surfboards.": "person, beach, surfboard",
    "Three women and two children sit on benches near the buses.": "woman, child, bench, bus",
    "The knives and forks lie next to the loaves of bread.": "knife, fork, bread",
    "A shelf full of dishes, mugs, and vases stands in the kitchen.": "shelf, dish, mug, vase, kitchen",
    "Geese and sheep share the meadow with a few mice.": "goose, sheep, meadow, mouse",
    "The leaves on the trees are turning yellow.": "leaf, tree",
    "A woman with glasses is cutting paper with a pair of scissors.": "woman, glasses, paper, scissors",
    "Two glasses of wine and a bottle of water are on the table.": "glass, wine, bottle, water, table",
    "Two firemen and a policewoman stand next to ladders and hoses.": "fireman, policewoman, ladder, hose",
    # Compounds
    "The wine glasses are stacked on shelves.": "wine glass, shelf",
    "A fire hydrant stands next to a stop sign.": "fire hydrant, stop sign",
    "The traffic lights above the intersection are red.": "traffic light, intersection",
    "A young boy swings a baseball bat while the catcher crouches behind home plate.": (
        "boy, baseball bat, catcher, home plate"
    ),
    "A man is talking on his cell phone at a dining table.": "man, cell phone, dining table",
    "There are hot dogs and french fries on a paper plate.": "hot dog, french fry, paper plate",
    "A teddy bear sits in a high chair.": "teddy bear, high chair",
    "The living room has a couch, a coffee table, and a flat-screen TV.": "living room, couch, coffee table, tv",
    "A parking meter and a potted plant stand on the sidewalk.": "parking meter, potted plant, sidewalk",
    "She hits a tennis ball with her tennis racket on the tennis court.": "tennis ball, tennis racket, tennis court",
    "A frying pan and a cutting board are on the kitchen counter.": "frying pan, cutting board, kitchen counter",
    # Lists
    "The table holds a laptop, a mouse, a keyboard, and two monitors.": "table, laptop, mouse, keyboard, monitor",
    "The salad consists of tomatoes, lettuce, carrots, and black olives.": "salad, tomato, lettuce, carrot, olive",
    "The image features a variety of fruits, including apples, bananas, and oranges.": "fruit, apple, banana, orange",
    "The image shows:\n- a red backpack\n- two water bottles\n- a pair of hiking boots": (
        "backpack, water bottle, hiking boot"
    ),
    "1. A dog on a couch\n2. A cat on a windowsill": "dog, couch, cat, windowsill",
    "**Main objects:**\n* **Bicycle** - leaning against a wall\n* **Basket** - full of flowers": (
        "bicycle, wall, basket, flower"
    ),
    # Denials
    "There is no dog in the picture.": "",
    "There is no dog.": "",
    "A man without a hat rides a horse.": "man, horse",
    "The image does not contain any cars.": "",
    "There is no visible text on the sign.": "sign",
    "There are no people or animals on the road.": "road",
    "The woman is not wearing a helmet, but she is holding a skateboard.": "woman, skateboard",
    "I don't see any cats, dogs, or birds in this photo.": "",
    "The street is empty, with no cars or buses in sight.": "street",
    "Neither a bicycle nor a motorcycle is parked in front of the shop.": "shop",
    "The man's face is not visible in the image.": "man",
    "No, there is no bench; a chair stands under the tree.": "chair, tree",
    "The room has no windows, and a lamp lights the desk.": "room, lamp, desk",
    "The dog is not on the sofa; the dog is lying on the rug.": "dog, rug",
    "There is no cat on the bed, but another cat is under the chair.": "bed, cat, chair",
    "No, the umbrella is closed.": "umbrella",
    "There isn't a clock on the wall.": "wall",
    "The dog isn't there.": "",
    "The cat is not here, but a bowl is.": "bowl",
    "Hot air balloons float above the hills.": "hot air balloon, hill",
    "The dryer blows hot air onto a towel.": "dryer, towel",
    "The boy is barefoot, without shoes and socks, and holds a kite.": "boy, kite",
    "There are not only apples but also three bananas in the basket.": "apple, banana, basket",
    "Cars and trucks are not present in this scene, only a bicycle.": "bicycle",
    "No one is wearing a mask.": "",
    # What a sign forbids is no denial
    "A no parking sign is on the pole.": "sign, pole",
    "There is a no smoking sign on the wall.": "sign, wall",
    "A no u-turn sign hangs above the road.": "sign, road",
    "A stop sign and a no entry sign stand at the corner.": "stop sign, sign",
    "Two large no left turn signs hang beside a \u201cDo Not Enter\u201d sign.": "sign",
    "The 'no dogs' sign is red, and a no-parking sign lies on the grass.": "sign, grass",
    "There is no sign on the pole, and there are no stop signs.": "pole",
    "There is no parking sign on the street.": "street",
    "The no entry sign is not visible.": "",
    "A dog has no collar and a sign stands there.": "dog, sign",
    # Owners
    "The man's hat is lying on the woman's lap.": "man, hat, woman, lap",
    "A child is brushing its teeth in front of the bathroom mirror.": "child, tooth, bathroom mirror",
    "The dogs' leashes are tied to a pole.": "dog, leash, pole",
    # Colours, counts, materials
    "A small red car is parked behind a large white truck.": "car, truck",
    "The cat is black and white, and its collar is blue.": "cat, collar",
    "An orange cat sleeps next to an orange.": "cat, orange",
    "Dozens of colorful umbrellas hang above the street.": "umbrella, street",
    "There are a total of five boats in the harbor.": "boat, harbor",
    "A couple of brown cows are resting under a big old tree.": "cow, tree",
    "The bus is green and yellow.": "bus",
    "A metal spoon and a glass jar are on the stone wall.": "spoon, jar, wall",
    "A clock tower made of brick rises above the houses.": "clock tower, house",
    # Words that name nothing visible
    "The overall atmosphere of the scene is calm and peaceful.": "",
    "In the background of the image, a train can be seen on the left side.": "train",
    "The main color of the wall is blue.": "wall",
    "The number of players on the field is ten.": "player, field",
    "The answer to the question is a banana.": "banana",
    "The photo captures a moment of joy during a family celebration.": "family",
    "The type of animal in the photo is a polar bear.": "animal, polar bear",
    "The kitchen area includes a microwave, an oven and a refrigerator.": "kitchen, microwave, oven, refrigerator",
    "He is looking at the camera and smiling.": "",
    # Chains of prepositions
    "A slice of pizza on a plate sits at the edge of a wooden table.": "pizza, plate, table",
    "A group of people is waiting for the train at the end of the platform.": "person, train, platform",
    "A bunch of bananas hangs from the ceiling of the shop.": "banana, ceiling, shop",
    "A cup of coffee and a piece of cake are on a tray.": "cup, coffee, cake, tray",
    "A herd of elephants walks along the shore of a lake.": "elephant, shore, lake",
    "A bowl of soup stands between a spoon and a napkin.": "bowl, soup, spoon, napkin",
    # Gerunds
    "A man riding a wave on top of a surfboard.": "man, wave, surfboard",
    "Surfing is a popular sport, and the surfer enjoys riding.": "surfer",
    "The skier is skiing down a snowy slope while holding ski poles.": "skier, slope, ski pole",
    "Sitting on a bench, an elderly couple is feeding the pigeons.": "bench, couple, pigeon",
    "The building has a railing and a painting on the wall.": "building, railing, painting, wall",
    # Questions
    "What is the man in the blue shirt holding in his left hand?": "man, shirt, hand",
    "How many birds are sitting on the wire?": "bird, wire",
    "What color is the umbrella?": "umbrella",
    "Is the woman wearing a scarf?": "woman, scarf",
    # Names, capitals, quotes
    "Pizza is served on a wooden board.": "pizza, board",
    "John is holding a kite at Central Park in New York.": "kite",
    "Cars are parked along the street in London.": "car, street",
    "A Coca-Cola bottle stands next to a Frisbee.": "bottle, frisbee",
    "A CAT IS SITTING ON A CHAIR": "cat, chair",
    'The sign says "No dogs allowed".': "sign",
    "People are flying kites.": "person, kite",
    "Someone left a suitcase on the floor.": "suitcase, floor",
}

# Written before the rules and never used to tune them: what to expect of text the rules were not made for.
HELD_OUT = {
    "The image features a man riding a motorcycle down a winding mountain road.": "man, motorcycle, mountain road",
    "A large brown bear is standing in the water, looking for fish.": "bear, water, fish",
    "There are several cars parked along the side of the street, and a bus is approaching.": "car, street, bus",
    "Two young girls are sitting at a table, eating slices of watermelon.": "girl, table, watermelon",
    "The bathroom is equipped with a toilet, a sink, and a bathtub.": "bathroom, toilet, sink, bathtub",
    "A black dog is catching a frisbee in mid-air.": "dog, frisbee",
    "The skateboarder is performing a trick on a ramp in the skate park.": "skateboarder, ramp, skate park",
    "No, there are no traffic lights visible in the image.": "",
    "The cat is lying on top of the man's laptop keyboard.": "cat, man, laptop keyboard",
    "In the scene, a woman wearing a yellow raincoat holds a clear umbrella over her head.": (
        "woman, raincoat, umbrella, head"
    ),
    "A stack of pancakes topped with blueberries and syrup is served on a white plate.": (
        "pancake, blueberry, syrup, plate"
    ),
    "The giraffes are eating leaves from the tall trees behind the fence.": "giraffe, leaf, tree, fence",
    "There is a vase filled with pink roses in the center of the dining table.": "vase, rose, dining table",
    "The baseball player is about to swing his bat at the incoming ball.": "baseball player, bat, ball",
    "The train is not moving, and there aren't any passengers on the platform.": "train, platform",
    "The elephants' trunks are raised as they spray water.": "elephant, trunk, water",
    "A little boy without shoes is playing with toy trucks on the carpet.": "boy, toy truck, carpet",
    "What type of vehicle is parked next to the fire truck?": "vehicle, fire truck",
    "The weather appears to be sunny, as the people are wearing sunglasses and shorts.": "person, sunglasses, shorts",
    "This photo was likely taken during a birthday party, since there are balloons and a cake with candles.": (
        "balloon, cake, candle"
    ),
    "A couple is cutting their wedding cake with a knife.": "couple, wedding cake, knife",
    "The old clock on the church tower shows that it is ten minutes past four.": "clock, church tower",
    "Yes, the surfer is wearing a wetsuit and has a leash attached to his ankle.": "surfer, wetsuit, leash, ankle",
    "The desk is cluttered with books, papers, pens, and other office supplies.": (
        "desk, book, paper, pen, office supply"
    ),
    "Sheep are grazing on a lush green hillside under a cloudy sky.": "sheep, hillside, sky",
    "The man in the suit does not have a tie, but he is carrying a briefcase.": "man, suit, briefcase",
    "A refrigerator covered in magnets stands beside a gas stove.": "refrigerator, magnet, gas stove",
    "Three airplanes are flying in formation, leaving trails of smoke behind them.": "airplane, trail, smoke",
    "The best way to describe the mood of the picture is relaxed.": "",
    "Two horses are pulling a carriage with tourists through a cobblestone street.": "horse, carriage, tourist, street",
    "A snowboarder in a red jacket jumps over a wooden fence.": "snowboarder, jacket, fence",
    "The girl's hair is tied back in a ponytail with a ribbon.": "girl, hair, ponytail, ribbon",
    "The remote control and a pair of glasses are lying on the armrest of the couch.": (
        "remote control, glasses, armrest, couch"
    ),
    "Workers in hard hats are repairing the railroad tracks.": "worker, hard hat, railroad track",
    "An assortment of doughnuts is displayed in a glass case at the bakery.": "doughnut, case, bakery",
    "1. The chef is chopping onions.\n2. A pot is boiling on the stove.": "chef, onion, pot, stove",
    "There is only one person in the boat, and nobody is swimming in the lake.": "person, boat, lake",
    "Broccoli and carrots are mixed with rice in a blue bowl.": "broccoli, carrot, rice, bowl",
    "What is the purpose of the orange cones on the road?": "cone, road",
    "The pizza has toppings such as mushrooms, peppers, and cheese.": "pizza, topping, mushroom, pepper, cheese",
}


def pair(chosen: str, prompt: str = "", rejected: str = "") -> Pair:
    return Pair(1, "a.jpg", prompt, chosen, rejected)


def named(chosen: str, prompt: str = "") -> str:
    return ", ".join(phrase.text for phrase in candidate_phrases(pair(chosen, prompt)))


@pytest.mark.parametrize(("sentence", "expected"), SENTENCES.items())
def test_objects_of_a_sentence(sentence: str, expected: str) -> None:
    assert named(sentence) == expected


@pytest.mark.parametrize("sentence", [text for text in SENTENCES if not text.startswith("No")])
def test_a_prompt_is_read_like_an_answer(sentence: str) -> None:
    assert named("Yes.", prompt=sentence) == SENTENCES[sentence]


def test_share_right_on_sentences_the_rules_were_not_made_for() -> None:
    right = sum(named(sentence) == expected for sentence, expected in HELD_OUT.items())
    assert right >= 38


def test_order_is_first_sentence_then_prompt_then_rest() -> None:
    """The horse is named three times and counts where the order meets it first; the surface is the text there."""
    found = candidate_phrases(
        pair(
            prompt="Why do the two Horses stand near a fence?",
            chosen="A farmer has tied them up. Behind the fence, horses wait beside traffic lights. A horse is old.",
        )
    )
    assert found == (
        Phrase("farmer", "chosen_first", "farmer"),
        Phrase("horse", "prompt", "Horses"),
        Phrase("fence", "prompt", "fence"),
        Phrase("traffic light", "chosen_rest", "traffic lights"),
    )


def test_contrast_puts_what_only_the_chosen_answer_names_first_and_chosen_only_takes_no_other() -> None:
    """The rejected answer names dog and ball, and denies the frisbee, so the frisbee still tells the two apart.

    The lawn stands in the prompt alone, and tells nothing.
    """
    one = pair(
        prompt="What is on the lawn?",
        chosen="A dog runs with a frisbee. There are also two cats and a ball.",
        rejected="Dogs play with a ball. There is no frisbee.",
    )
    in_order = [phrase.text for phrase in candidate_phrases(one)]
    by_contrast = [phrase.text for phrase in candidate_phrases(one, prefer="contrast")]
    assert in_order == ["dog", "frisbee", "lawn", "cat", "ball"]
    assert by_contrast == ["frisbee", "cat", "dog", "lawn", "ball"]
    assert [phrase.text for phrase in candidate_phrases(one, prefer="chosen_only")] == ["frisbee", "cat"]


@pytest.mark.parametrize(
    ("prompt", "chosen", "expected"),
    [
        ("Is there a dog in the yard?", "No, there is no dog.", "yard"),
        ("Is there a dog or a cat in the yard?", "No.", "yard"),
        ("Is the man wearing a hat?", "No, he is bareheaded.", "man"),
        ("Is there a dog in the yard?", "Yes.", "dog, yard"),
        ("Is there a dog in the yard?", "No one is there but a dog.", "dog, yard"),
        ("What is the dog doing?", "There is no dog. There is a cat.", "cat"),
        ("Is the dog on the bed?", "The dog is not on the bed. The dog lies under the bed.", "dog, bed"),
    ],
)
def test_an_object_that_the_answer_denies_is_not_taken_from_the_prompt(prompt: str, chosen: str, expected: str) -> None:
    assert named(chosen, prompt) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \n\t\r\n ",
        "Yes",
        "No",
        "No.",
        "no no not without",
        "?!...",
        "-\n*\n1.\n2)",
        "\U0001f600\U0001f468\u200d\U0001f469\u200d\U0001f467",
        "\u4e00\u53ea\u732b\u5750\u5728\u684c\u5b50\u4e0a\u3002",
        "\u0421\u043e\u0431\u0430\u043a\u0430 \u0441\u0438\u0434\u0438\u0442.",
        "\u0130\u0130\u0130 \udcff \x00",
        "'\"`\u201c\u201d\u2018''``",
        "of of of the the a",
        "<script>alert(1)</script>",
        "a" * 5000,
        "no " + "sign of " * 2000,
    ],
)
def test_any_text_is_taken_and_its_surfaces_stand_in_it(text: str) -> None:
    for chosen in (text, f"A dog {text} on a sofa."):
        for phrase in candidate_phrases(pair(chosen, prompt=text, rejected=text), prefer="contrast"):
            assert phrase.surface in (text if phrase.source == "prompt" else chosen)


def test_surfaces_are_kept_among_quotes_and_emoji() -> None:
    found = candidate_phrases(
        pair('\u201cTwo Dogs\u201d \U0001f436 and the man\u2019s "wine glasses" \u2014 caf\u00e9s!')
    )
    assert [phrase.surface for phrase in found] == ["Dogs", "man", "wine glasses", "caf\u00e9s"]


def test_the_sample_lists_hide_something_that_is_among_the_candidates() -> None:
    """The lists were made by hand; two name by one word what the text names by a compound ("a frying pan")."""
    pairs = json.loads((ROOT / "data" / "sample" / "pairs.json").read_text())
    lists = [json.loads(line) for line in (ROOT / "data" / "sample" / "image_lists.jsonl").read_text().splitlines()]
    missed = set()
    for record, by_hand in zip(pairs, lists, strict=True):
        candidates = {phrase.text for phrase in candidate_phrases(Pair(**record))}
        if singular(by_hand["phrase"]) not in candidates:
            assert any(text.endswith(f" {singular(by_hand['phrase'])}") for text in candidates)
            missed.add(by_hand["id"])
    assert missed == {"rocket-tower", "pan-counter"}


# ---- verbs that the tagger takes for nouns; what is denied ----


@pytest.mark.parametrize(
    ("text", "whole", "shorter"),
    [
        ("Dogs bark.", "dogs bark", "dog"),
        ("Two women talk.", "women talk", "woman"),
        ("A horse gallops.", "horse gallop", "horse"),
        ("The bus stops.", "bus stop", "bus"),  # the place, if there is one
        ("The bus stop is empty.", "bus stop", None),  # a stop, as its number and the verb behind it say
        ("Wine glasses are on the table.", "wine glass", None),
        ("A wine glass stands on the table.", "wine glass", None),
    ],
)
def test_a_phrase_has_a_shorter_form_where_its_last_word_may_be_a_verb(
    text: str, whole: str, shorter: str | None
) -> None:
    phrase = candidate_phrases(Pair(1, "a.jpg", "What is it?", text, "x"))[0]
    assert phrase.text == whole
    assert (phrase.shorter and phrase.shorter.text) == shorter


def read_sentences() -> list[tuple[str, set[str], set[str]]]:
    """(sentence, objects that are there, objects that are denied) of a list written before the rule."""
    lines = (Path(__file__).parent / "data" / "sentences.txt").read_text(encoding="utf-8").splitlines()
    parts = [line.split("|") for line in lines if not line.startswith("#")]
    return [
        (sentence.strip(), *({name.strip() for name in names.split(",")} - {""} for names in (there, denied)))
        for sentence, there, denied in parts
    ]


def test_of_212_sentences_201_name_all_their_objects_and_none_a_denied_one() -> None:
    """Asked as a detector with the true boxes would be: the whole phrase, then its shorter form. 120 without those."""
    whole = with_shorter = 0
    sentences = read_sentences()
    for sentence, there, denied in sentences:
        pair = Pair(1, "a.jpg", "Describe the image.", sentence, "x")
        phrases = candidate_phrases(pair)
        named = [{name for name in there if match(phrase.text, name) is not None} for phrase in phrases]
        second = [
            found or {name for name in there if phrase.shorter and match(phrase.shorter.text, name) is not None}
            for phrase, found in zip(phrases, named, strict=True)
        ]
        whole += set().union(*named) == there
        with_shorter += set().union(*second) == there
        assert not denied & {phrase.text for phrase in phrases}, sentence
        assert not denied & {phrase.shorter.text for phrase in phrases if phrase.shorter}, sentence
        assert denied <= denied_objects(pair), sentence
        assert not there & denied_objects(pair), sentence
    assert (len(sentences), whole, with_shorter) == (212, 120, 201)
