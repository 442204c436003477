"""What to ask for: brainstorms, the pool of tasks that they give, and example after example.

Everything here is a pure function of the config, the seed and a number, so a job that starts again asks for the same
things under the same keys. Draws are hashes, because a generator's stream may change between versions of a library,
and then everything would be paid for a second time.
"""

import bisect
import dataclasses
import functools
import hashlib
import itertools
import math
import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from e5jax.errors import FailedError, UserError
from e5jax.prompts import nearest
from e5jax.synthetic import languages, topics
from e5jax.synthetic.config import SynthesizeConfig
from e5jax.synthetic.request import Request, Sampling
from e5jax.synthetic.task_types import TASKS_SCHEMA, TYPES


EXAMPLES_PER_TASK = 3  # the paper has 150,000 instructions for 500,000 examples
TASKS_PER_BRAINSTORM = 20  # without a topic
MAX_TASK_CHARACTERS = 500
CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# Steps of two sequences that fill the unit square evenly (the powers of the plastic number): any run of examples has
# its share of each type, and of each task within the type. With independent draws, 60 examples would often lack a type.
TYPE_STEP, TASK_STEP = 0.7548776662466927, 0.5698402909980532


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shares:
    """Names and how often each is drawn; the shares are positive and sum to 1."""

    of: Mapping[str, float]

    @functools.cached_property
    def _edges(self) -> list[float]:
        return list(itertools.accumulate(self.of.values()))[:-1]

    @functools.cached_property
    def _names(self) -> list[str]:
        return list(self.of)

    def at(self, point: float) -> str:
        """The name whose part of [0, 1) the point lies in."""
        return self._names[bisect.bisect_right(self._edges, point)]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mix:
    """What examples are drawn from."""

    seed: int
    types: Shares
    languages: Shares
    placeholders: Mapping[str, Mapping[str, Sequence[str]]]
    """{task type: {placeholder: values}}."""


def mix(config: SynthesizeConfig) -> Mix:
    """The config's mix, or the paper's where it has none; UserError, with the known names, for one that is unknown."""
    if unknown := [name for name in config.types if name not in TYPES]:
        raise UserError(f"types: unknown {', '.join(unknown)}{nearest(unknown[0], TYPES)} (known: {', '.join(TYPES)})")
    wanted: dict[str, float] = {}
    for code, weight in zip(languages.resolve(config.languages), config.languages.values(), strict=True):
        wanted[code] = wanted.get(code, 0) + weight  # `de` and `German` are one
    chosen = Mix(
        seed=config.seed,
        types=_shares("types", config.types or {t.name: t.share for t in TYPES.values()}),
        languages=_shares("languages", wanted or languages.PAPER),
        placeholders=_placeholders(config.placeholders),
    )
    if len(chosen.languages.of) < 2 and "bitext" in chosen.types.of:
        raise UserError(f"languages: bitext takes two, and {', '.join(chosen.languages.of)} is one; leave bitext out")
    return chosen


def brainstorms(config: SynthesizeConfig, sampling: Sampling) -> Iterator[Request]:
    """The requests for lists of tasks, type by type, numbered from 0 in each."""
    chosen = mix(config)
    seeds = topics.load(config.topics) if config.topics else []
    count = {"count": str(config.tasks_per_topic) if seeds else f"about {TASKS_PER_BRAINSTORM}"}
    per_brainstorm = config.tasks_per_topic if seeds else TASKS_PER_BRAINSTORM
    for name, total in _brainstorms_by_type(chosen, config.examples, config.brainstorms, per_brainstorm).items():
        order = sorted(seeds, key=lambda topic: uniform(config.seed, name, topic))
        for number in range(total):
            drawn = count | ({"topic": order[number % len(order)]} if order else {})
            yield Request(
                kind="brainstorm",
                task_type=name,
                number=number,
                prompt_version=TYPES[name].version,
                prompt=TYPES[name].tasks_prompt(drawn),
                schema=TASKS_SCHEMA,
                drawn=drawn,
                sampling=sampling,
            )


def pool(answers: Iterable[tuple[Mapping, Sequence[str]]]) -> dict[str, list[str]]:
    """{task type: tasks} of (request, its list of tasks), whatever order they come in.

    A task is one line; blank, overlong, undecodable and repeated ones are left out, as is what a brainstorm with a
    topic has beyond the count it was asked for.
    """
    tasks: dict[str, dict[str, None]] = {}
    for request, listed in sorted(answers, key=lambda answer: (answer[0]["task_type"], answer[0]["number"])):
        drawn = request["drawn"]
        cleaned = [task for task in map(one_line, listed) if task is not None]
        kept = cleaned[: int(drawn["count"])] if "topic" in drawn else cleaned
        tasks.setdefault(request["task_type"], {}).update(dict.fromkeys(kept))
    return {name: list(of_type) for name, of_type in tasks.items()}


def stand_in_pool() -> dict[str, list[str]]:
    """One task a type, as long as a task may be: for what a plan costs at the most, before there are tasks."""
    # No character takes more than the four bytes of this one.
    return {t.name: ["🂡" * MAX_TASK_CHARACTERS] for t in TYPES.values() if t.asymmetric}


def examples(config: SynthesizeConfig, sampling: Sampling, pool: Mapping[str, Sequence[str]]) -> Iterator[Request]:
    """The requests for examples 0, 1, ..., made as they are asked for.

    Raises FailedError, before the first, where a type of the mix has no task in the pool.
    """
    chosen = mix(config)
    if bare := [name for name in chosen.types.of if TYPES[name].asymmetric and not pool.get(name)]:
        raise FailedError(
            f"no brainstorm gave a task for {', '.join(bare)}: see the report for what went wrong, ask again for what "
            "was given up, or leave the type out of `types`"
        )
    return (example(chosen, sampling, pool, number) for number in range(config.examples))


def example(mix: Mix, sampling: Sampling, pool: Mapping[str, Sequence[str]], number: int) -> Request:
    """Request `number` of a mix, whatever the others are."""
    seed = mix.seed
    task_type = TYPES[mix.types.at((uniform(seed, "type") + number * TYPE_STEP) % 1)]
    values = mix.placeholders[task_type.name]
    drawn = {name: of[int(uniform(seed, number, name) * len(of))] for name, of in values.items()}
    if len(task_type.languages) == 2:
        drawn |= zip(task_type.languages, pair(mix.languages.of, f"{seed} {number}"), strict=True)
    else:
        drawn["language"] = mix.languages.at(uniform(seed, number, "language"))
    if task_type.asymmetric:
        tasks = pool[task_type.name]
        drawn["task"] = tasks[int((uniform(seed, "task") + number * TASK_STEP) % 1 * len(tasks))]
    return Request(
        kind="example",
        task_type=task_type.name,
        number=number,
        prompt_version=task_type.version,
        prompt=task_type.example_prompt(drawn),
        schema=task_type.schema,
        drawn=drawn,
        sampling=sampling,
    )


def uniform(*what: str | int) -> float:
    """A number in [0, 1), as if drawn anew for each `what`."""
    bits = int.from_bytes(hashlib.blake2b(repr(what).encode(), digest_size=8).digest(), "big")
    return (bits >> 11) * 2.0**-53


def pair(shares: Mapping[str, float], what: str) -> tuple[str, str]:
    """Two different names, each of them as often as its share.

    Two points half a circle apart never fall on one name, as none has more than half of the circle. (Drawing until the
    two differ would lower the share of English from 43 to 31 percent.) A share above a half counts as a half.
    """
    generator = random.Random(what)  # str seeds and random() are the two things that Python promises to keep
    largest = max(shares, key=shares.__getitem__)
    half = min(0.5, shares[largest])
    scale = (1 - half) / (1 - shares[largest])
    parts = {name: share * scale for name, share in shares.items()} | {largest: half}
    circle = Shares(of={name: parts[name] for name in sorted(parts, key=lambda _: generator.random())})
    point = generator.random()
    return circle.at(point), circle.at((point + 0.5) % 1)


def one_line(text: str) -> str | None:
    """A task or query that a model wrote, white space evened out; None where it cannot be used."""
    line = " ".join(CONTROL.sub(" ", text).split()) if isinstance(text, str) else ""
    try:
        line.encode()  # JSON can spell half an emoji
    except UnicodeEncodeError:
        return None
    return line if 0 < len(line) <= MAX_TASK_CHARACTERS else None


def _shares(field: str, weights: Mapping[str, float]) -> Shares:
    """The weights over their sum, without those of 0."""
    if bad := [name for name, weight in weights.items() if not 0 <= weight < math.inf]:
        raise UserError(f"{field}: the share of {bad[0]} must be 0 or more, got {weights[bad[0]]}")
    total = sum(weights.values())
    if total == 0:
        raise UserError(f"{field}: all shares are 0")
    return Shares(of={name: weight / total for name, weight in weights.items() if weight})


def _placeholders(chosen: Mapping[str, Sequence[str]]) -> dict[str, dict[str, Sequence[str]]]:
    """The values of every type's placeholders, those of {"type.placeholder": values} in place of the paper's."""
    known = {f"{t.name}.{name}": values for t in TYPES.values() for name, values in t.placeholders.items()}
    if unknown := [name for name in chosen if name not in known]:
        raise UserError(
            f"placeholders: unknown {', '.join(unknown)}{nearest(unknown[0], known)} (known: {', '.join(known)})"
        )
    if empty := [name for name, values in chosen.items() if not values]:
        raise UserError(f"placeholders: {empty[0]} has no values (the paper's: {', '.join(known[empty[0]])})")
    return {
        t.name: {name: chosen.get(f"{t.name}.{name}", values) for name, values in t.placeholders.items()}
        for t in TYPES.values()
    }


def _brainstorms_by_type(mix: Mix, examples: int, brainstorms: int | None, tasks: int) -> dict[str, int]:
    """How many brainstorms, of `tasks` tasks each, a type gets: at least one."""
    shares = {name: share for name, share in mix.types.of.items() if TYPES[name].asymmetric}
    if brainstorms is None:
        return {name: math.ceil(examples * share / (EXAMPLES_PER_TASK * tasks)) for name, share in shares.items()}
    if brainstorms < len(shares):
        raise UserError(f"brainstorms: {brainstorms} is too few, as {', '.join(shares)} take one each")
    scale = (brainstorms - len(shares)) / (sum(shares.values()) or 1)
    edges = [round(edge * scale) for edge in itertools.accumulate(shares.values(), initial=0)]
    return {name: 1 + stop - start for name, (start, stop) in zip(shares, itertools.pairwise(edges), strict=True)}
