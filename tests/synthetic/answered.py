"""Ledgers for tests: entries of every type, written as the real ledger writes them."""

import json
import random

from e5jax.synthetic import entries, task_types
from e5jax.synthetic.answers import Rules


WORDS = (
    "river bread winter teacher market engine garden window music doctor letter bridge forest kitchen planet history "
    "paper horse village ocean science morning student answer mountain weather machine coffee library station dinner"
).split()


def rules(**changes) -> Rules:
    versions = {name: (kind.version,) for name, kind in task_types.TYPES.items()}
    plain = {"prompt_versions": versions, "check_language": False, "max_characters": 2_000, "evaluation": None}
    return Rules(**(plain | {"heldout": 0.2} | changes))


def sentence(seed, words=25) -> str:
    rng = random.Random(f"{seed}")
    return "The " + " ".join(rng.choice(WORDS) + str(rng.randrange(20)) for _ in range(words))


def entry(number, kind="short-long", fields=None, text=None, task="Find documents on a topic.", **changes) -> dict:
    """An answered request; `text` or `fields` is the answer, `changes` go to entry, request or answer."""
    type_ = task_types.TYPES[kind]
    drawn = {"task": task} | dict(zip(type_.languages, ("en", "de"), strict=False))
    fields = {key: sentence((kind, number, key)) for key in type_.keys} if fields is None else fields
    request = {
        "kind": "example",
        "task_type": kind,
        "number": number,
        "prompt_version": type_.version,
        "drawn": drawn,
        "prompt": "Write.",
        "sampling": {"model": "m-1", "temperature": 1.0, "top_p": 1.0, "max_tokens": 100},
    }
    answer = {
        "text": json.dumps(fields) if text is None else text,
        "finish_reason": "stop",
        "prompt_tokens": 10,
        "answer_tokens": 20,
        "model_version": "m-1-001",
        "response_id": f"r{number}",
    }
    found = {"key": f"{kind}-{number}", "cost": 1_000, "tokens": 30, "tries": 1, "gave_up": None, "time": 1.5}
    found |= {"client": "gemini", "request": request, "answer": answer}
    for name, value in changes.items():
        owner = next((part for part in (found, request, answer) if name in part), drawn)
        owner[name] = value
    return found


def ledger(folder, *segments):
    """A ledger folder of these lists of entries (or lines), a file each."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, rows in enumerate(segments):
        lines = [row if isinstance(row, bytes) else entries.to_line(row) for row in rows]
        (folder / f"answers-{number:05d}.jsonl").write_bytes(b"".join(lines))
    return folder


def mixed(count: int) -> list[dict]:
    """Entries of all types with tasks, duplicates, near duplicates and faults among them."""
    kinds, rows = list(task_types.TYPES), []
    for i in range(count):
        kind = kinds[i % len(kinds)]
        rows.append(entry(i, kind, task=f"Find documents on {WORDS[i % 17]}."))
        keys = task_types.TYPES[kind].keys
        if i % 7 == 3:
            rows.append(entry(count + i, kind, fields={key: sentence((kind, i, key)) for key in keys}))
        if i % 7 == 4:
            fields = {key: sentence((kind, i, key)) for key in keys}
            rows.append(entry(2 * count + i, kind, fields={**fields, keys[1]: fields[keys[1]] + " Indeed"}))
        if i % 11 == 5:
            rows.append(entry(3 * count + i, kind, finish_reason="max_tokens"))
        if i % 11 == 6:
            rows += [entry(4 * count + i, kind, answer=None, gave_up="429"), entry(4 * count + i, kind)]
        if i % 11 == 7:
            rows += [entry(5 * count + i, kind, answer=None, gave_up="500"), b'{"key": 1\n']
    return rows
