"""Texts with classes become pairs: each text with the text of its label, or with another example of its class.

The paper of E5-Mistral has labels as passages (Table 9). NV-Embed (arXiv 2405.17428, §4.2 and Table 4) took its average
over classification, clustering and the rest from 70.8 to 72.3 with examples in their place.
"""

import random
from collections.abc import Iterable, Iterator
from typing import Any


LABELS = ("label_text", "label", "category")
NEGATIVES = 7  # of a pair; data.max_negatives says how many of them are used


def pairs(rows: Iterable[tuple[str, Any]], how: str) -> Iterator[tuple[str, Any]]:
    """(place, fields with `text` and a label) -> (place, fields with query, positive, negatives); `how`: text, example.

    All texts are held in memory. Which example and which other classes a text meets is drawn at random, as a function
    of its number: the same rows give the same pairs. In the place of the fields stands a sentence where there is no
    pair: a row without text or label, a text that is the only one of its class.
    """
    rows = [(where, fields, _text(fields), _label(fields)) for where, fields in rows]
    members: dict[str, list[str]] = {}
    place_in_class = []
    for _, _, text, label in rows:
        of_class = members.setdefault(label, []) if text and label else []
        place_in_class.append(len(of_class))
        of_class.append(text)
    classes = list(members)
    number_of = {label: number for number, label in enumerate(classes)}
    for number, ((where, fields, text, label), place) in enumerate(zip(rows, place_in_class, strict=True)):
        if not (text and label):
            yield where, _lacks(fields)
            continue
        draw = random.Random(number)
        others = [classes[n] for n in _others(draw, len(classes), number_of[label], NEGATIVES)]
        if how == "text":
            yield where, fields | {"query": text, "positive": label, "negatives": others}
            continue
        example = _others(draw, len(members[label]), place, 1)
        negatives = [draw.choice(members[other]) for other in others]
        if example:
            yield where, fields | {"query": text, "positive": members[label][example[0]], "negatives": negatives}
        else:
            yield where, f"the only text of {label!r}: there is no other example of its class"


def _others(draw: random.Random, count: int, but: int, wanted: int) -> list[int]:
    """So many different numbers below `count`, without `but`; fewer where there are fewer."""
    return [n + (n >= but) for n in draw.sample(range(count - 1), min(wanted, count - 1))]


def _text(fields: Any) -> str | bytes | None:
    return fields.get("text") if isinstance(fields, dict) else None


def _label(fields: Any) -> str | None:
    """The class that a row names, as text."""
    if not isinstance(fields, dict):
        return None
    label = next((fields[name] for name in LABELS if fields.get(name) not in (None, "")), None)
    return label.decode() if isinstance(label, bytes) else None if label is None else str(label)


def _lacks(fields: Any) -> Any:
    if not isinstance(fields, dict):
        return fields
    missing = "text" if not fields.get("text") else " or ".join(LABELS)
    return f"no {missing}; its fields are {', '.join(fields) or 'none'}"
