"""The forms that other programs and data sets give a preference, made into ours; told apart by the keys of a record.

:func:`translate` turns a record into ``{"id", "img_path", "prompt", "chosen", "rejected"}``, of which ``pairs``
checks the texts. docs/pairs.md shows every form.
"""

import base64
import binascii
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from listwise_preference.data.validation import BadRecord, shown
from listwise_preference.errors import DataError
from listwise_preference.files import Record, parse_json

IMAGE_TOKEN = "<image>"  # where other programs' prompts have their image

_USER, _ASSISTANT = ("user", "human"), ("assistant", "gpt", "llm")
_CONVERSATION = "conversation of another form"
_NO_PREFERENCE = "no preference"
_IMAGE = "image path missing or unclear"
_BASE64 = ("iVBORw0KGgo", "/9j/", "UklGR", "R0lGOD")  # how PNG, JPEG, WebP and GIF begin in it


@dataclass
class Translation:
    """The pairs of one record, the name of the form, and how much of it is not among the pairs, by what it is."""

    form: str
    pairs: list[Record]
    left_out: Counter[str] = field(default_factory=Counter)


def translate(value: Record, limit: int = 1) -> Translation:
    """The pairs of a record in any form that is known; a record in ours or in TRL's stays as it is.

    Args:
        limit: pairs made of a record that has several responses.

    Raises:
        BadRecord: the record has the keys of a form and does not keep to it, or holds no preference.
    """
    _check_one_image(value)
    if "completions" in value:
        translation = _rated(value, limit)
    elif {"output_1", "output_2"} <= value.keys():
        translation = _two_outputs(value)
    elif "rejected_conversations" in value and "conversations" in value:
        translation = _two_conversations(value, "conversations", "rejected_conversations", "LLaVA, two conversations")
    elif "rejected_messages" in value and "messages" in value:
        translation = _two_conversations(value, "messages", "rejected_messages", "ms-swift")
    elif "rejected_response" in value and "messages" in value:
        translation = _rejected_response(value, limit)
    elif {"query", "response", "rejected_response"} <= value.keys():
        translation = _query(value, limit)
    elif ("conversations" in value or "messages" in value) and "chosen" in value:
        translation = _conversation_and_two(value, limit)
    elif "instruction" in value and "chosen" in value:
        translation = _instruction(value, limit)
    elif isinstance(value.get("text"), str) and "chosen" not in value:
        translation = _json_text(value)
    else:
        translation = _ours(value, limit)
    for pair in translation.pairs:
        pair |= {key: value[key] for key in ("id", "img_path", "image", "images") if key in value and key not in pair}
        if "file_name" in value and not pair.keys() & {"img_path", "image", "images"}:
            pair["img_path"] = value["file_name"]  # the name that an image folder's metadata gives it
    return translation


# The forms


def _ours(value: Record, limit: int) -> Translation:
    form = "TRL, conversational" if isinstance(value.get("chosen"), list) else "prompt, chosen, rejected"
    if _are_texts(value.get("rejected")) or _are_texts(value.get("chosen")):
        left_out: Counter[str] = Counter()
        pairs = _each_with_each(_responses(value, "chosen"), _responses(value, "rejected"), limit, left_out)
        return Translation("several responses", [_bare(value) | pair for pair in pairs], left_out)
    return Translation(form, [_bare(value)])


def _bare(value: Record) -> Record:
    """The record without a mark for the image at an end of its prompt; one inside a sentence is left to the checks."""
    bare = dict(value)
    for key in ("prompt", "question"):
        if isinstance(given := value.get(key), str):
            bare[key] = _without_outer_marker(given)
    for key in ("prompt", "question", "chosen", "rejected"):
        if isinstance(given := value.get(key), list):
            bare[key] = [_bare_message(one) for one in given]
    return bare


def _bare_message(message: Any) -> Any:
    if not isinstance(message, dict) or message.get("role") != "user" or not isinstance(message.get("content"), str):
        return message
    return message | {"content": _without_outer_marker(message["content"])}


def _conversation_and_two(value: Record, limit: int) -> Translation:
    """LLaMA-Factory's ShareGPT preference: a conversation that ends with the user, and two responses."""
    key = "conversations" if "conversations" in value else "messages"
    _check_no_system(value)
    prompt = _one_question(_messages(value, key), key)
    left_out: Counter[str] = Counter()
    chosen, rejected = _responses(value, "chosen"), _responses(value, "rejected")
    pairs = _each_with_each(chosen, rejected, limit, left_out)
    return Translation("LLaMA-Factory, ShareGPT", [{"prompt": prompt, **pair} for pair in pairs], left_out)


def _instruction(value: Record, limit: int) -> Translation:
    """LLaMA-Factory's Alpaca preference: instruction and input are the two halves of the prompt."""
    _check_single_turn(value)
    halves = [_as_text(value[key], key) for key in ("instruction", "input") if value.get(key)]
    left_out: Counter[str] = Counter()
    pairs = _each_with_each(_responses(value, "chosen"), _responses(value, "rejected"), limit, left_out)
    prompt = _without_marker("\n".join(halves))
    return Translation("LLaMA-Factory, Alpaca", [{"prompt": prompt, **pair} for pair in pairs], left_out)


def _rejected_response(value: Record, limit: int) -> Translation:
    """ms-swift's: messages that end with the chosen response, and the rejected one, or several."""
    prompt, chosen = _question_and_response(_messages(value, "messages"), "messages")
    left_out: Counter[str] = Counter()
    pairs = _each_with_each([chosen], _responses(value, "rejected_response"), limit, left_out)
    return Translation("ms-swift", [{"prompt": prompt, **pair} for pair in pairs], left_out)


def _query(value: Record, limit: int) -> Translation:
    """ms-swift's older one: a query, the chosen response, and the rejected one, or several."""
    _check_single_turn(value)
    prompt = _without_marker(_as_text(value["query"], "query"))
    left_out: Counter[str] = Counter()
    pairs = _each_with_each(_responses(value, "response"), _responses(value, "rejected_response"), limit, left_out)
    return Translation("ms-swift, query and response", [{"prompt": prompt, **pair} for pair in pairs], left_out)


def _two_conversations(value: Record, first: str, second: str, form: str) -> Translation:
    """Two whole conversations, alike but for their last message."""
    prompt, chosen = _question_and_response(_messages(value, first), first)
    other, rejected = _question_and_response(_messages(value, second), second)
    if other != prompt:
        raise BadRecord("text missing or unusable", f'the user messages of "{first}" and "{second}" are different')
    return Translation(form, [{"prompt": prompt, "chosen": chosen, "rejected": rejected}])


def _two_outputs(value: Record) -> Translation:
    """LLaVA-RLHF's: a conversation, two outputs, and the number of the better one."""
    prompt = _one_question(_messages(value, "conversations"), "conversations")
    better = value.get("preference")
    outputs = [_responses(value, key)[0] for key in ("output_1", "output_2")]
    if better not in (1, 2, "1", "2"):
        raise BadRecord(_NO_PREFERENCE, f'"preference" is {shown(better)}, neither 1 nor 2')
    chosen, rejected = outputs if int(better) == 1 else reversed(outputs)
    return Translation("LLaVA, two outputs", [{"prompt": prompt, "chosen": chosen, "rejected": rejected}])


def _json_text(value: Record) -> Translation:
    """RLHF-V's: question and responses as JSON in one text."""
    try:
        texts = parse_json(value["text"], "text")
    except DataError:
        return Translation("prompt, chosen, rejected", [dict(value)])  # "text" is something else: what lacks is said
    if not isinstance(texts, dict):
        return Translation("prompt, chosen, rejected", [dict(value)])
    keys = ("question", "prompt", "chosen", "rejected")
    return Translation("RLHF-V", [_bare({key: texts[key] for key in keys if key in texts})])


def _rated(value: Record, limit: int) -> Translation:
    """VLFeedback's: several responses with ratings. The best against the worst, then by how far two are apart."""
    given = value["completions"]
    if isinstance(given, Mapping):  # `datasets` turns a list of records into a record of lists
        lengths = {len(one) if isinstance(one, list) else -1 for one in given.values()}
        if len(lengths) != 1 or -1 in lengths:
            raise BadRecord("text missing or unusable", '"completions" holds no lists of one length')
        given = [{key: one[n] for key, one in given.items()} for n in range(lengths.pop())]
    if not isinstance(given, list) or any(not isinstance(one, dict) for one in given):
        raise BadRecord("text missing or unusable", f'"completions" is {shown(given)}, not a list of responses')
    left_out: Counter[str] = Counter()
    rated = []
    for one in given:
        rating = _rating(one)
        if rating is None:
            left_out["responses without a rating"] += 1
        elif not isinstance(one.get("response"), str) or not one["response"].strip():
            left_out["responses without a text"] += 1
        else:
            rated.append((rating, one["response"]))
    if len(rated) < 2:
        raise BadRecord(_NO_PREFERENCE, f"{len(rated)} of {len(given)} responses have a rating, a pair needs 2")
    apart = [(a, b) if a[0] > b[0] else (b, a) for a, b in combinations(rated, 2) if a[0] != b[0] and a[1] != b[1]]
    if not apart:
        raise BadRecord(_NO_PREFERENCE, f"all {len(rated)} responses are rated {rated[0][0]:g}, or are the same text")
    apart.sort(key=lambda pair: pair[1][0] - pair[0][0])  # the farthest first; of equal ones the file's order
    taken = apart[:limit]
    if unused := len(rated) - len({text for pair in taken for _, text in pair}):
        left_out["responses in no pair"] += unused
    pairs = [{"chosen": better[1], "rejected": worse[1]} for better, worse in taken]
    prompt = value.get("prompt", value.get("question"))
    if isinstance(prompt, str):
        prompt = _without_marker(prompt)
    return Translation("several rated responses", [{"prompt": prompt, **pair} for pair in pairs], left_out)


def _rating(completion: Record) -> float | None:
    """Its score, or the mean of its aspects' ratings; None without any, as VLFeedback's "N/A"."""
    for key in ("score", "rating", "overall_score", "reward"):
        if (number := _number(completion.get(key))) is not None:
            return number
    annotations = completion.get("annotations")
    if not isinstance(annotations, Mapping):
        return None
    aspects = [
        one.get("Rating", one.get("rating")) if isinstance(one, Mapping) else one for one in annotations.values()
    ]
    numbers = [_number(one) for one in aspects]
    known = [one for one in numbers if one is not None]
    return sum(known) / len(known) if known and len(known) == len(numbers) else None


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None


# Messages


def _messages(value: Record, key: str) -> list[tuple[str, str]]:
    """(role, text) of each message, in the spelling of ShareGPT or of OpenAI; images only in their count."""
    given = value.get(key)
    if not isinstance(given, list) or not given:
        raise BadRecord(_CONVERSATION, f'"{key}" is {shown(given)}, not a list of messages')
    return [_message(one, key) for one in given]


def _message(message: Any, key: str) -> tuple[str, str]:
    if not isinstance(message, Mapping):
        raise BadRecord(_CONVERSATION, f'"{key}" holds {shown(message)}, not a message')
    role, content = message.get("role", message.get("from")), message.get("content", message.get("value"))
    if isinstance(content, list):
        content = "".join(_part(part, key) for part in content)
    if role in _USER:
        role = "user"
    elif role in _ASSISTANT:
        role = "assistant"
    return str(role), _as_text(content, key)


def _part(part: Any, key: str) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return part["text"]
    if kind in ("image", "image_url"):
        return IMAGE_TOKEN
    raise BadRecord(_CONVERSATION, f'"{key}" holds {shown(part)}, neither a text part nor an image part')


def _one_question(messages: list[tuple[str, str]], key: str) -> str:
    """The text of a conversation of one user message."""
    roles = [role for role, _ in messages]
    if roles != ["user"]:
        raise _unusable(key, roles, "one message of the user")
    return _without_marker(messages[0][1])


def _question_and_response(messages: list[tuple[str, str]], key: str) -> tuple[str, str]:
    roles = [role for role, _ in messages]
    if roles != ["user", "assistant"]:
        raise _unusable(key, roles, "one message of the user and one of the assistant")
    return _without_marker(messages[0][1]), messages[1][1]


def _unusable(key: str, roles: list[str], expected: str) -> BadRecord:
    named = roles if len(roles) <= 5 else [*roles[:4], "..."]
    return BadRecord(_CONVERSATION, f'"{key}" has {len(roles)} messages ({", ".join(named)}), expected {expected}')


def _check_no_system(value: Record) -> None:
    if value.get("system"):
        raise BadRecord(
            _CONVERSATION, f'"system" is {shown(value["system"])}; the models\' prompts have no such message'
        )


def _check_single_turn(value: Record) -> None:
    _check_no_system(value)
    if value.get("history"):
        raise BadRecord(_CONVERSATION, '"history" has earlier turns, which the method cannot use')


def _without_outer_marker(text: str) -> str:
    try:
        return _without_marker(text)
    except BadRecord:
        return text


def _without_marker(text: str) -> str:
    """The text without its mark for the image, which stands before the text whatever the mark's place was."""
    count = text.count(IMAGE_TOKEN)
    if count > 1:
        raise BadRecord(_IMAGE, f"the prompt has {count} marks {IMAGE_TOKEN}")
    before, _, after = text.partition(IMAGE_TOKEN)
    if before.strip() and after.strip():
        raise BadRecord(_CONVERSATION, f"{IMAGE_TOKEN} stands inside the prompt: {shown(text)}")
    return text.replace(IMAGE_TOKEN, "").strip("\n ") if count else text


# Responses


def _responses(value: Record, key: str) -> list[str]:
    """The texts of a response: a text, a message, a list of either."""
    given = value.get(key)
    if given is None:
        raise BadRecord("text missing or unusable", f'no "{key}"')
    texts = []
    for one in given if isinstance(given, list) else [given]:
        if isinstance(one, Mapping):
            role, text = _message(one, key)
            if role != "assistant":
                raise BadRecord(_CONVERSATION, f'"{key}" holds a {shown(role)} message, not one of the assistant')
            texts.append(text)
        else:
            texts.append(_as_text(one, key))
    if not texts:
        raise BadRecord("text missing or unusable", f'"{key}" is an empty list')
    return texts


def _are_texts(given: Any) -> bool:
    return isinstance(given, list) and bool(given) and all(isinstance(one, str) for one in given)


def _as_text(given: Any, key: str) -> str:
    if not isinstance(given, str):
        raise BadRecord("text missing or unusable", f'"{key}" is {shown(given)}, not text')
    return given


def _each_with_each(chosen: list[str], rejected: list[str], limit: int, left_out: Counter[str]) -> list[Record]:
    """The first ``limit`` pairs: no order is known among several chosen, or several rejected responses."""
    pairs = [{"chosen": good, "rejected": bad} for bad in rejected for good in chosen][:limit]
    for name, texts in (("chosen", chosen), ("rejected", rejected)):
        if unused := len(texts) - len({pair[name] for pair in pairs}):
            left_out[f"{name} responses in no pair"] += unused
    return pairs


# Images


def _check_one_image(value: Record) -> None:
    for key in ("images", "rejected_images"):
        if isinstance(given := value.get(key), list) and len(given) > 1:
            raise BadRecord(_IMAGE, f'"{key}" is {shown(given)}, not the path of one image')
    worse = value.get("rejected_images")
    if worse and _one(worse) != _one(value.get("images", value.get("image"))):
        raise BadRecord(_IMAGE, '"rejected_images" is another image than "images"')
    if kind := next((key for key in ("videos", "audios") if value.get(key)), None):
        raise BadRecord(_IMAGE, f'"{kind}" is {shown(value[kind])}')


def _one(images: Any) -> Any:
    return images[0] if isinstance(images, list) and len(images) == 1 else images


def embedded(image: Any) -> bytes | None:
    """The bytes of an image that is in the record itself; None where the record names a file.

    Raises:
        BadRecord: the bytes are not base64, where they are text.
    """
    if isinstance(image, str):
        if image.startswith(_BASE64) and "." not in image:  # a path has an ending
            return _from_base64(image)
        head, comma, rest = image.partition(",") if image.startswith("data:image/") else ("", "", "")
        return _from_base64(rest) if comma and head.endswith(";base64") else None
    content = image.get("bytes") if isinstance(image, Mapping) else image
    if isinstance(content, str):
        return _from_base64(content)
    return bytes(content) if isinstance(content, bytes | bytearray) and content else None


def _from_base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise BadRecord("image unreadable", f"{shown(text)} is not base64 of an image") from None


def path_of(image: Any) -> Any:
    """The path by which a record names its image, be it text or {"path"}."""
    return image["path"] if isinstance(image, Mapping) and isinstance(image.get("path"), str) else image
