"""Folders of sentence-transformers: modules.json and the files it leads to, the only place that knows their names.

Read in both spellings (sentence-transformers 6 and before). Written so that sentence-transformers from 2 to 6,
text-embeddings-inference (TEI) and vLLM agree: old module names, pooling in both spellings, the length of texts where
each of them looks for it.
"""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from e5jax.errors import UserError
from e5jax.formats import Prompts
from e5jax.pooling import Kind
from e5jax.settings import number, refuse
from e5jax.tensors import read_json


MODULES = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
POOLING = "1_Pooling/config.json"
# What Pooling was told with before version 6, one switch a mode.
SWITCHES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
OURS: dict[str, Kind] = {"lasttoken": "last", "mean": "mean", "weightedmean": "weighted_mean", "cls": "cls"}
# Keys of sentence_bert_config.json that change the computation -> (harmless values, what any other asks for).
REFUSED = {
    "do_lower_case": ((False,), "text in lower case"),
    "transformer_task": (("feature-extraction",), "another head than the hidden states"),
    "config_args": (({},), "another config than the model's"),
    "config_kwargs": (({},), "another config than the model's"),
    "query_expansion": ((), "queries made longer"),
    "query_length": ((), "a length of its own for queries"),
    "document_length": ((), "a length of its own for passages"),
}
UNKNOWN_LENGTH = 10**9  # tokenizers write 10^30 for "no limit known"
INSTRUCTED = re.compile(r"(?s)(Instruct: ?).+?(\nQuery: ?)")
PASSAGE_NAMES = ("document", "passage", "corpus")  # in the order in which `encode_document` looks for them
SEARCH = "Given a web search query, retrieve relevant passages that answer the query"  # Wang et al. 2024, Table 14


@dataclasses.dataclass(frozen=True, kw_only=True)
class STFiles:
    """What the files say."""

    transformer: Path
    """The folder with config.json or adapter_config.json, weights and tokenizer."""
    pooling: Kind | None
    """None where they do not say."""
    normalize: bool
    """Whether they give vectors of unit length, as e5jax does either way: cosines are the same."""
    max_length: int | None
    """Tokens of a text, special ones included; None where they do not say."""
    prompts: Prompts


def read(directory: Path) -> STFiles:
    """What a folder's files say; a folder that is none of sentence-transformers says nothing.

    `default_prompt_name` is not heeded: here whoever encodes says what is a query. Raises UserError, naming file and
    key, for any pooling, module, task or comparison that is not here.
    """
    if not (directory / "modules.json").is_file():
        pooling = _pooling(directory / POOLING) if (directory / POOLING).is_file() else None
        prompts = Prompts(query=None)
        return STFiles(transformer=directory, pooling=pooling, normalize=False, max_length=None, prompts=prompts)
    paths = _modules(directory / "modules.json")
    transformer = directory / paths["Transformer"]
    said = _optional(directory / "config_sentence_transformers.json")
    where = directory / "config_sentence_transformers.json"
    refuse(said, {"model_type": (("SentenceTransformer",), "another kind of model than an embedder")}, where)
    normalize = "Normalize" in paths
    if not normalize:
        asks_for = "vectors of other lengths than one (modules.json has no Normalize)"
        refuse(said, {"similarity_fn_name": (("cosine",), asks_for)}, where)
    return STFiles(
        transformer=transformer,
        pooling=_pooling(directory / paths["Pooling"] / "config.json"),
        normalize=normalize,
        max_length=_max_length(transformer),
        prompts=read_prompts(said.get("prompts") or {}, where),
    )


def _modules(where: Path) -> dict[str, str]:
    """Name of each module -> its folder."""
    try:
        listed = json.loads(where.read_text(encoding="utf-8"))
        found = [(str(module["type"]), PurePosixPath(module["path"])) for module in listed]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{where}: not a list of modules with type and path: {error!r}") from None
    paths = {}
    for kind, path in found:
        name = kind.split(".")[-1]
        if not kind.startswith("sentence_transformers.") or name not in MODULES or name in paths:
            raise UserError(f"{where}: module {kind}: e5jax has one each of {', '.join(MODULES)} and nothing else")
        if path.is_absolute() or ".." in path.parts:
            raise UserError(f"{where}: {path} is not a path inside this folder")
        paths[name] = str(path)
    if missing := {"Transformer", "Pooling"} - set(paths):
        raise UserError(f"{where}: no {' and no '.join(sorted(missing))}: not an embedder of texts")
    return paths


def _pooling(where: Path) -> Kind:
    """The pooling that a file asks for; one that says nothing means the mean. UserError for one that is not here."""
    raw = read_json(where)
    asked = raw.get("pooling_mode") or [mode for key, mode in SWITCHES.items() if raw.get(key)] or ["mean"]
    asked = [asked] if isinstance(asked, str) else asked
    asked = list(map(str, asked)) if isinstance(asked, list) else [str(asked)]
    if len(asked) != 1 or asked[0] not in OURS:
        raise UserError(f"{where}: pooling {', '.join(asked)}; e5jax has one of {', '.join(OURS)}")
    return OURS[asked[0]]


def _max_length(transformer: Path) -> int | None:
    """sentence_bert_config.json rules; else the tokenizer's limit, no more than the positions of the model."""
    where = transformer / "sentence_bert_config.json"
    raw = _optional(where)
    refuse(raw, REFUSED, where)
    if raw.get("max_seq_length") is not None:
        return number(raw, "max_seq_length", int, where)
    where = transformer / "tokenizer_config.json"
    raw = _optional(where)
    if raw.get("model_max_length") is None:
        return None
    limit = number(raw, "model_max_length", float, where)
    if limit > UNKNOWN_LENGTH:
        return None
    where = transformer / "config.json"
    positions = number({"max_position_embeddings": limit} | _optional(where), "max_position_embeddings", float, where)
    return int(min(limit, positions))


def _optional(path: Path) -> dict:
    return read_json(path) if path.is_file() else {}


def read_prompts(named: Mapping[str, str | None], where: Path) -> Prompts:
    """The prompts of a model by name -> what goes in front of its queries and passages.

    `Instruct: …\\nQuery:` under any name is a template, in the model's own spelling; else the prompt named query is
    what it is, and without one nothing is asked for.
    """
    if not isinstance(named, Mapping) or not all(isinstance(p, str | None) for p in named.values()):
        raise UserError(f"{where}: prompts must be texts by name, not {json.dumps(named)[:200]}")
    texts = [named.get("query"), *named.values()]
    templates = [m.expand(r"\1{task}\2") for text in texts if text and (m := INSTRUCTED.fullmatch(text))]
    return Prompts(
        query=templates[0] if templates else named.get("query") or None,
        passage=next((named[name] for name in PASSAGE_NAMES if named.get(name)), ""),
    )


def name_prompts(prompts: Prompts, tasks: Sequence[str]) -> dict[str, str]:
    """Prompts by name, for `read_prompts` to understand and people to choose from.

    A template is filled with web search's instruction (the name is that of e5-mistral-7b-instruct) and with each of
    `tasks`, named by its words. Where there is one task alone, it is what `encode_query` uses.
    """
    passage = {"document": prompts.passage} if prompts.passage else {}
    if prompts.query is None:
        return passage
    if "{task}" not in prompts.query:
        return {"query": prompts.query} | passage
    tasks = list(dict.fromkeys(tasks))
    named = {"query": tasks[0]} if len(tasks) == 1 else {}
    named |= {"web_search_query": SEARCH}
    named |= {re.sub(r"\W+", "_", task.lower()).strip("_"): task for task in tasks if task not in named.values()}
    return {name: prompts.query.replace("{task}", task) for name, task in named.items()} | passage


def write(directory: Path, dim: int, pooling: Kind, max_length: int, prompts: Mapping[str, str]) -> None:
    """The files around a Transformer that lies in `directory` itself; its weights and its tokenizer are others' work.

    `dim` is the width of a vector, `pooling` one that these files have a name for (not latent), `max_length` tokens of
    a text with special ones, `prompts` by name.
    """
    (mode,) = (theirs for theirs, ours in OURS.items() if ours == pooling)
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
        for i, (name, path) in enumerate(MODULES.items())
    ]
    pooling = {
        "word_embedding_dimension": dim,
        "embedding_dimension": dim,
        **{switch: of == mode for switch, of in SWITCHES.items()},
        "pooling_mode": mode,
        "include_prompt": True,  # behind the modes: older vLLM takes the first that is true for the mode
    }
    files = {
        "modules.json": modules,
        POOLING: pooling,
        "sentence_bert_config.json": {"max_seq_length": max_length, "do_lower_case": False},
        "config_sentence_transformers.json": {
            "model_type": "SentenceTransformer",
            "prompts": dict(prompts),
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
    }
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
