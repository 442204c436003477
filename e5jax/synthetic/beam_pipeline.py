"""The filters as a Beam pipeline, for ledgers that are too large for one machine (the extra `beam`).

It calls the functions that `filters` calls on each line, and groups where `filters` sorts: of entries with one key, of
pairs with the same texts and of examples that share a band the lowest number stays. So it writes the same examples,
rejections and counts, in files `examples-00000-of-00010.jsonl` and so on, in any order.

Options of the runner (project, region, temp_location, ...) are read from the file that $BEAM_OPTIONS names, a JSON
object, as runners have hundreds.
"""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from e5jax.errors import FailedError, UserError
from e5jax.synthetic import duplicates, filters
from e5jax.synthetic.answers import Example, Rejected, Rules


Place = tuple[str, int, str]
"""(task type, number, key): the order of the plan."""


def run(ledger: str, folder: str, rules: Rules, near_duplicates: float, runner: str) -> None:
    """What `filters.run` does, on a Beam runner (DirectRunner, DataflowRunner, FlinkRunner, ...)."""
    try:
        import apache_beam as beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
        raise UserError("--beam-runner needs Apache Beam: pip install 'e5jax[beam]'") from None
    for name in ("examples", "rejected", "tally"):
        for old in Path(folder).glob(f"{name}*.jsonl"):
            old.unlink()
    options = PipelineOptions.from_dictionary({"runner": runner, **_runner_options()})
    try:
        with beam.Pipeline(options=options) as pipeline:
            _build(pipeline, ledger, folder, rules, near_duplicates)
    except (RuntimeError, OSError, ValueError) as error:
        raise FailedError(f"{runner}: {error}") from error


def _runner_options() -> dict:
    name = os.environ.get("BEAM_OPTIONS")
    if name is None:
        return {}
    try:
        options = json.loads(Path(name).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"BEAM_OPTIONS={name}: not a JSON file: {error}") from error
    if not isinstance(options, dict):
        raise UserError(f"BEAM_OPTIONS={name}: not a JSON object of options")
    return options


def _build(pipeline, ledger: str, folder: str, rules: Rules, near_duplicates: float) -> None:
    import apache_beam as beam

    lines = pipeline | "read" >> beam.io.ReadFromTextWithFilename(
        f"{ledger}/answers-*.jsonl", coder=beam.coders.BytesCoder()
    )
    tags = ("examples", "rejected", "given up", "settled", "tally")
    judged = lines | "judge" >> beam.FlatMap(_judge, rules).with_outputs(*tags)
    by_key = (
        judged["examples"]
        | "by key" >> beam.GroupByKey()
        | beam.FlatMapTuple(_lowest_of_key).with_outputs("no", main="yes")
    )
    by_pair = (
        by_key["yes"]
        | "by pair" >> beam.GroupByKey()
        | beam.FlatMapTuple(_lowest_of_pair).with_outputs("no", main="yes")
    )
    kept, rejections = by_pair["yes"], [judged["rejected"], by_key["no"], by_pair["no"]]
    if near_duplicates < 1:
        similar = (
            kept
            | "bands" >> beam.FlatMapTuple(_bands)
            | "by band" >> beam.GroupByKey()
            | "giving way" >> beam.FlatMap(_giving_way, near_duplicates)
            | "lowest" >> beam.CombinePerKey(min)
        )
        joined = {"example": kept, "similar": similar} | "join" >> beam.CoGroupByKey()
        told = joined | "tell" >> beam.FlatMapTuple(_unless_similar).with_outputs("no", main="yes")
        kept = told["yes"]
        rejections.append(told["no"])
    given_up = {"row": judged["given up"], "settled": judged["settled"]} | "given up" >> beam.CoGroupByKey()
    rejections.append(given_up | beam.FlatMapTuple(_unless_settled))
    rejected = rejections | "all rejected" >> beam.Flatten()
    counts = rejected | "count them" >> beam.Map(lambda row: (filters.rejection(row), 1))
    tally = (judged["tally"], counts) | "all counts" >> beam.Flatten() | "sum" >> beam.CombinePerKey(sum)
    for name, rows in {
        "examples": kept | "example lines" >> beam.MapTuple(lambda place, example: filters.line_of(example)),
        "rejected": rejected | "rejected lines" >> beam.Map(filters.line_of),
        "tally": tally | "tally lines" >> beam.MapTuple(filters.tally_line),
    }.items():
        out = beam.io.WriteToText(f"{folder}/{name}", ".jsonl", append_trailing_newlines=False)
        _ = rows | f"write {name}" >> out


def _judge(line: tuple[str, bytes], rules: Rules) -> Iterator:
    from apache_beam.pvalue import TaggedOutput

    path, content = line
    found, entry = filters.judge(content, path.rsplit("/", 1)[-1], rules)
    for count in filters.tally_of(entry).items():
        yield TaggedOutput("tally", count)
    if entry is not None and entry.get("answer") is not None:
        yield TaggedOutput("settled", (entry["key"], None))
    if isinstance(found, Example):
        yield TaggedOutput("examples", (found.key, found))
    elif found is not None and found.reason == filters.GIVEN_UP:
        yield TaggedOutput("given up", (found.key, found))
    elif found is not None:
        yield TaggedOutput("rejected", found)


def _place(example: Example) -> Place:
    return example.task_type, example.number, example.key


def _lowest_of_key(key: str, examples: Iterable[Example]) -> Iterator:
    yield from _lowest(examples, filters.TWICE, lambda example: (f"{filters.pair(example):x}", example))


def _lowest_of_pair(pair: str, examples: Iterable[Example]) -> Iterator:
    yield from _lowest(examples, filters.EXACT, lambda example: (_place(example), example))


def _lowest(examples: Iterable[Example], reason: str, keyed) -> Iterator:
    from apache_beam.pvalue import TaggedOutput

    first, *others = sorted(examples, key=_place)
    yield keyed(first)
    for other in others:
        yield TaggedOutput("no", _rejected(_place(other), reason, first.key))


def _bands(place: Place, example: Example) -> Iterator[tuple[str, tuple[Place, bytes]]]:
    signature = filters.signature(example)
    for number in range(duplicates.BANDS):
        yield f"{number} {duplicates.band(signature[None], number)[0]:x}", (place, signature.tobytes())


def _giving_way(band: tuple, threshold: float) -> Iterator[tuple[Place, Place]]:
    import numpy as np

    members = sorted(band[1])
    signatures = np.stack([np.frombuffer(content, np.uint32) for _, content in members])
    for higher, lower in duplicates.giving_way(signatures, threshold):
        yield members[higher][0], members[lower][0]


def _unless_similar(place: Place, joined: dict) -> Iterator:
    from apache_beam.pvalue import TaggedOutput

    similar = list(joined["similar"])
    if similar:
        yield TaggedOutput("no", _rejected(place, filters.NEAR, similar[0][2]))
    else:
        yield from ((place, example) for example in joined["example"])


def _unless_settled(key: str, joined: dict) -> Iterator[Rejected]:
    if not list(joined["settled"]):
        yield list(joined["row"])[-1]


def _rejected(place: Place, reason: str, other: str) -> Rejected:
    return Rejected(key=place[2], task_type=place[0], reason=reason, detail=f"of {other}")
