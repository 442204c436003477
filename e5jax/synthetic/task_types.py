"""The six kinds of training example of Wang et al. 2024 (arXiv 2401.00368, section 3.1, figure 2, tables 8 to 13).

An asymmetric type is asked for in two steps: a brainstorm gives a list of tasks, then one request an example. STS and
bitext have one task each, and need no brainstorm. Where the paper's text and its tables disagree, the tables count.
"""

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Mapping

from e5jax.synthetic import templates
from e5jax.synthetic.languages import NAMES


# What a brainstorm answers.
TASKS_SCHEMA = {"type": "array", "items": {"type": "string"}}
# Placeholders whose values go into a prompt as JSON strings.
FREE_TEXT = ("task", "topic", "query", "passage")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TaskType:
    """One row of the paper's taxonomy: what is drawn, what is asked, and what the answer's keys mean."""

    name: str
    share: float
    """Thousands of examples in the paper, figure 2."""
    task: str | None
    """The one task of a symmetric type; None: brainstormed."""
    brainstorm: str | None
    """Template of the request for tasks."""
    example: str
    """Template of the request for an example."""
    placeholders: dict[str, tuple[str, ...]]
    """What is drawn for each example beside its task and languages."""
    languages: tuple[str, ...]
    """Placeholders that hold a language; `drawn` has its code, the prompt its name."""
    keys: tuple[str, ...]
    """Of an answer: query, positive and, in types that have one, negative."""

    @property
    def asymmetric(self) -> bool:
        """Whether query and positive are of different kinds, so that there are many tasks."""
        return self.task is None

    @property
    def schema(self) -> dict:
        """JSON schema of an example's answer."""
        return object_schema(self.keys)

    @functools.cached_property
    def version(self) -> str:
        """Short hash of all that decides a prompt of this type beside what is drawn."""
        around = (templates.ON_TOPIC, templates.LIST_ONLY, templates.OBJECT_ONLY)
        return digest([self.brainstorm, self.example, around, self.keys, self.placeholders])

    def tasks_prompt(self, drawn: Mapping[str, str]) -> str:
        """The brainstorm with `count` and, where there is one, `topic`."""
        on_topic = templates.ON_TOPIC if "topic" in drawn else ""
        return render(self.brainstorm + on_topic + templates.LIST_ONLY, drawn)

    def example_prompt(self, drawn: Mapping[str, str]) -> str:
        """The request for one example with everything that was drawn for it."""
        return render(self.example + templates.OBJECT_ONLY, drawn)

    def record(self, drawn: Mapping[str, str], fields: Mapping[str, str]) -> dict:
        """{task, query, positive, negatives} of a checked answer."""
        query, positive, *negatives = (fields[key] for key in self.keys)
        return {"task": self.task or drawn["task"], "query": query, "positive": positive, "negatives": negatives}


def object_schema(keys: tuple[str, ...]) -> dict:
    """A JSON object with exactly these keys, all of them strings."""
    properties = {key: {"type": "string"} for key in keys}
    return {"type": "object", "properties": properties, "required": list(keys), "additionalProperties": False}


def digest(content: object) -> str:
    """The first 12 hexadecimal digits of the sha256 of a JSON value."""
    return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()[:12]


def render(template: str, drawn: Mapping[str, str]) -> str:
    """The template with each {placeholder} replaced by what was drawn for it; KeyError where nothing was."""

    def value(match: re.Match) -> str:
        name = match[1]
        if name in FREE_TEXT:
            return json.dumps(drawn[name], ensure_ascii=False)
        return NAMES.get(drawn[name], drawn[name]) if name in LANGUAGES else drawn[name]

    # One pass: braces inside a value are never looked at again.
    return re.sub(r"\{(\w+)\}", value, template)


LANGUAGES = ("language", "src_lang", "tgt_lang")
ADVANCED = ("high school", "college", "PhD")
EVERYDAY = ("elementary school", "high school", "college")
CLARITY = ("clear", "understandable with some effort", "ambiguous")
UNIT = ("sentence", "phrase", "passage")
HIGH_SCORE = ("4", "4.5", "5")

TYPES: dict[str, TaskType] = {
    t.name: t
    for t in (
        TaskType(
            name="short-long",
            share=167,
            task=None,
            brainstorm=templates.SHORT_LONG_TASKS,
            example=templates.SHORT_LONG,
            placeholders={
                "query_type": ("extremely long-tail", "long-tail", "common"),
                "query_length": ("less than 5 words", "5 to 15 words", "at least 10 words"),
                "difficulty": ADVANCED,
                "clarity": CLARITY,
                "num_words": ("50", "100", "200", "300", "400", "500"),
            },
            languages=("language",),
            keys=("user_query", "positive_document", "hard_negative_document"),
        ),
        TaskType(
            name="long-short",
            share=122,
            task=None,
            brainstorm=templates.LONG_SHORT_TASKS,
            example=templates.LONG_SHORT,
            placeholders={
                "num_words": ("less than 10", "at least 10", "at least 50", "at least 100", "at least 200"),
                "difficulty": ADVANCED,
                "clarity": CLARITY,
            },
            languages=("language",),
            keys=("input_text", "label", "misleading_label"),
        ),
        TaskType(
            name="short-short",
            share=13,
            task=None,
            brainstorm=templates.SHORT_SHORT_TASKS,
            example=templates.SHORT_SHORT,
            placeholders={},
            languages=("language",),
            keys=("input", "positive_document"),
        ),
        TaskType(
            name="long-long",
            share=17,
            task=None,
            brainstorm=templates.LONG_LONG_TASKS,
            example=templates.LONG_LONG,
            placeholders={},
            languages=("language",),
            keys=("input", "positive_document"),
        ),
        TaskType(
            name="sts",
            share=99,
            task="Retrieve semantically similar text.",
            brainstorm=None,
            example=templates.STS,
            placeholders={
                "unit": UNIT,
                "high_score": HIGH_SCORE,
                "low_score": ("2.5", "3", "3.5"),
                "difficulty": EVERYDAY,
            },
            languages=("language",),
            keys=("S1", "S2", "S3"),
        ),
        TaskType(
            name="bitext",
            share=89,
            task="Retrieve parallel sentences.",
            brainstorm=None,
            example=templates.BITEXT,
            placeholders={
                "unit": UNIT,
                "high_score": HIGH_SCORE,
                "low_score": ("1.5", "2", "2.5"),
                "difficulty": EVERYDAY,
            },
            languages=("src_lang", "tgt_lang"),
            keys=("S1", "S2", "S3"),
        ),
    )
}

ANY_LANGUAGE = "und"
"""Of what nobody asked for in a language: the corpus decides."""


class _Grounded(TaskType):
    """What an example is once a request of kind `ranking` is answered."""

    def record(self, drawn: Mapping[str, str], fields: Mapping[str, str]) -> dict:
        """{task, query, positive, negatives}; ValueError where the answer does not rank each candidate once."""
        candidates = json.loads(drawn["candidates"])
        ranking = [int(number) for number in re.findall(r"[0-9]+", fields["ranking"])]
        if sorted(ranking) != list(range(1, len(candidates) + 1)):
            raise ValueError(f"{fields['ranking'][:80]!r} does not rank 1 to {len(candidates)}")
        best, worst = candidates[ranking[0] - 1], candidates[ranking[-1] - 1]
        return {"task": drawn["task"], "query": drawn["query"], "positive": best, "negatives": [worst]}


GROUNDED = _Grounded(
    name="grounded",
    share=0,
    task=None,
    brainstorm=templates.QUERY,
    example=templates.RANKING,
    placeholders={name: TYPES["short-long"].placeholders[name] for name in ("query_type", "query_length", "clarity")},
    languages=(),
    keys=("ranking",),
)

ALL = TYPES | {GROUNDED.name: GROUNDED}
"""Everything that answers can be examples of."""
