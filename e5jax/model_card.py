"""The README.md of an exported model: the hub's metadata, how to use it, and what the run's own files say about it.

Nothing stands here that is not in config.json, metrics.jsonl or results.json, and no path of the machine it ran on:
files are called by their names.
"""

import dataclasses
import json
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from huggingface_hub import EvalResult, ModelCardData

import e5jax
from e5jax.errors import UserError
from e5jax.pooling import Kind
from e5jax.st_format import PASSAGE_NAMES
from e5jax.tensors import read_json


HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w.-]+")
QUERY = "how do bees find their way home"
PASSAGE = "Foraging bees steer by the sun and by the polarised light of the sky."

USE = """## How to use it

A query stands behind its instruction, a passage {passage_stands}. The three ways below give the same vectors.

```python
query = {query}
passage = {passage}
```

With e5jax:

```python
import e5jax

encoder = e5jax.Encoder.load({name})
vectors = encoder.encode([query, passage])
print(vectors @ vectors.T)
```

With sentence-transformers{with_peft}:

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer({name})
vectors = model.encode([query, passage])
print(model.similarity(vectors, vectors))
```

With transformers{with_peft}:

```python
import torch
from transformers import AutoModel, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({name})
model = AutoModel.from_pretrained({name}).eval()
batch = tokenizer(
    [query, passage], padding=True, padding_side="right", truncation=True, max_length={max_length}, return_tensors="pt"
)
with torch.no_grad():
    states = model(**batch).last_hidden_state
{pooling}
vectors = torch.nn.functional.normalize(vectors, dim=1)
print(vectors @ vectors.T)
```
"""


# Pooling -> in words, in transformers' terms.
POOLED = {
    "last": (
        "the hidden state of the last token",
        'last = batch["attention_mask"].sum(1) - 1  # where the text\'s end token is\n'
        "vectors = states[torch.arange(len(last)), last]",
    ),
    "cls": ("the hidden state of the first token", "vectors = states[:, 0]"),
    "mean": (
        "the mean of the hidden states",
        'mask = batch["attention_mask"][..., None]\nvectors = (states * mask).sum(1) / mask.sum(1)',
    ),
    "weighted_mean": (
        "the mean of the hidden states, weighted by position",
        'mask = batch["attention_mask"][..., None].cumsum(1) * batch["attention_mask"][..., None]\n'
        "vectors = (states * mask).sum(1) / mask.sum(1)",
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One step of a training run of ours."""

    workdir: Path
    step_dir: Path
    config: dict
    """Its config.json."""
    step: int
    evaluations: dict[int, dict]
    """Rows of metrics.jsonl with held-out metrics: step -> row."""

    @property
    def tasks(self) -> tuple[str, ...]:
        """The instructions that its sources give to records without one, each once."""
        return tuple(dict.fromkeys(s["task"] for s in self.config["data"]["train"] if s["task"]))


def read_results(path: Path) -> dict:
    """A results.json of `python -m e5jax.evaluate`. Raises UserError for anything else."""
    results = read_json(path)
    kinds = {"task": str, "metric": str, "value": int | float, "n": int}
    rows = results.get("results")
    if not isinstance(rows, list) or not all(
        isinstance(row, dict) and all(isinstance(row.get(key), kind) for key, kind in kinds.items()) for row in rows
    ):
        raise UserError(f"{path}: no results.json of an evaluation: `results` lists {', '.join(kinds)} of each task")
    return results


def render(
    *,
    name: str,
    form: str,
    license: str | None,
    origin: str | None,
    dim: int,
    pooling: Kind,
    max_length: int,
    dtype: str,
    prompts: Mapping[str, str],
    run: Run | None,
    results: Mapping | None,
) -> str:
    """The whole README.md.

    `name` is the folder or repository that readers will load; `origin` the model that it was made from (None: random
    weights); the others are as in export.Parts, `run` and `results` as read, or None.
    """
    parts = [
        f"---\n{_metadata(name, form, license, origin, results)}\n---",
        f"# {name}",
        f"Texts of up to {max_length:,} tokens in, vectors of {dim:,} dimensions and unit length out: "
        f"{POOLED[pooling][0]}. {_made(form, dtype, origin, run)}",
        _usage(name, form, pooling, max_length, prompts),
        *([_prompts(prompts)] if prompts else []),
        *(_training(run) if run else []),
        *([_measured(results)] if results else []),
        _versions(run, results),
    ]
    return "\n\n".join(parts) + "\n"


def _metadata(name, form, license, origin, results) -> str:
    measured = [
        EvalResult(
            task_type="sentence-similarity",
            dataset_type=row["task"],
            dataset_name=row["task"],
            metric_type=row["metric"],
            metric_value=row["value"],
        )
        for row in (results or {}).get("results", ())
    ]
    adapter = ["peft", "lora"] if form == "adapter" else []
    on_hub = origin if origin and _is_hub_name(origin) else None
    return ModelCardData(
        library_name="sentence-transformers",
        pipeline_tag="sentence-similarity",
        tags=["sentence-transformers", "feature-extraction", "sentence-similarity", "e5jax", *adapter],
        license=license,
        base_model=on_hub,
        base_model_relation=on_hub and ("adapter" if form == "adapter" else "finetune"),
        model_name=name,
        eval_results=measured or None,
    ).to_yaml()


def _is_hub_name(name: str) -> bool:
    return HUB_NAME.fullmatch(name) is not None and not Path(name).exists()


def _public(name: str) -> str:
    """A hub name as it is, of a path the last part."""
    return name if _is_hub_name(name) else _file_name(name)


def _file_name(name: str) -> str:
    """The last part of a path, and the one before where it is but the version of a TFDS dataset."""
    path = Path(name).expanduser().absolute()
    return f"{path.parent.name}/{path.name}" if re.fullmatch(r"\d+\.\d+\.\d+", path.name) else path.name


def _made(form: str, dtype: str, origin: str | None, run: Run | None) -> str:
    base = f"`{_public(origin)}`" if origin else "random weights"
    if run is None:
        return f"Exported from {base}; weights in {dtype}."
    if form == "adapter":
        return f"These files are an adapter to {base if origin else 'the random weights in `base/`'}, used in {dtype}."
    return f"Trained from {base}{' with adapters, now merged' if run.config['lora'] else ''}; weights in {dtype}."


def _usage(name: str, form: str, pooling: Kind, max_length: int, prompts: Mapping[str, str]) -> str:
    passage = next((prompts[key] for key in PASSAGE_NAMES if key in prompts), "")
    asked = next((prompt for key, prompt in prompts.items() if key not in PASSAGE_NAMES), "")
    literal = lambda text: json.dumps(text, ensure_ascii=False)
    return USE.format(
        name=literal(name),
        query=literal(asked + QUERY),
        passage=literal(passage + PASSAGE),
        passage_stands="behind its own words" if passage else "stands bare",
        with_peft=" (and peft installed)" if form == "adapter" else "",
        max_length=max_length,
        pooling=POOLED[pooling][1],
    ).rstrip()


def _prompts(prompts: Mapping[str, str]) -> str:
    rows = [(f"`{name}`", f"`{json.dumps(prompt, ensure_ascii=False)}`") for name, prompt in prompts.items()]
    return "## Prompts\n\n" + _table(["`prompt_name`", "in front of the text"], rows)


def _loss(config: dict) -> str:
    info_nce = f"InfoNCE over the whole batch, temperature {config['temperature']:g}"
    distill = config["distill"]
    if distill is None:
        return info_nce
    named = {"contrastive": info_nce, "match": "1 - cosine to", "kl": "KL of scores to", "margin_mse": "MarginMSE to"}
    teacher = f" `{_public(distill['teacher'])}`"
    terms = [
        f"{distill[name]:g} × {words}{teacher * (name != 'contrastive')}"
        for name, words in named.items()
        if distill[name]
    ]
    return " + ".join(terms)


def _changes(config: dict) -> dict[str, str]:
    """What else was set, in words; "" where it was not."""
    model = config["model"]
    contrast = {name: value for name, value in config.get("contrast", {}).items() if value}
    if not contrast.get("hardness"):
        contrast.pop("hardness_of", None)
    alone = [_source_name(source) for source in config["data"]["train"] if source.get("own_negatives_only")]
    return {
        "beyond InfoNCE": ", ".join(f"{name} {value}" for name, value in contrast.items()),
        "told from their own hard negatives alone": ", ".join(alone),
        "dimensions trained, too": ", ".join(map(str, config["matryoshka"])),
        "dropout of hidden states": f"{config['dropout']:g}" if config["dropout"] else "",
        "layers kept": ", ".join(map(str, model.get("keep_layers") or ())),
        "tokens see both sides": "yes" if model.get("causal") is False else "",
    }


def _training(run: Run) -> list[str]:
    config = run.config
    data, lora, optim = config["data"], config["lora"], config["optim"]
    sources = [(_source_name(source), _share(source), source["task"] or "") for source in data["train"]]
    trained = "every weight"
    if lora:
        trained = f"LoRA, rank {lora['rank']}, alpha {lora['alpha']:g}, dropout {lora['dropout']:g}, on "
        trained += ", ".join(lora["targets"])
    revision = f", revision {config['model']['revision']}" if config["model"].get("revision") else ""
    recipe = [
        ("start", f"`{_public(config['model']['base'])}`{revision}" if "base" in config["model"] else "random weights"),
        ("loss", _loss(config)),
        *[(name, words) for name, words in _changes(config).items() if words],
        ("steps", f"{run.step:,} of {config['steps']:,}"),
        ("batch", f"{config['batch_size']:,} queries" + ", of one source each" * data["same_source_batches"]),
        ("hard negatives a query", f"at most {data['max_negatives']}"),
        ("tokens of a text", f"at most {data['max_length']:,}"),
        ("trained", trained),
        ("optimiser", f"AdamW, betas {optim['b1']:g} and {optim['b2']:g}, weight decay {optim['weight_decay']:g}"),
        ("learning rate", f"{optim['peak_lr']:g} after {optim['warmup_steps']:,} steps, then linearly to 0"),
        ("gradient norm", f"clipped to {optim['clip_norm']:g}"),
        ("products in", config["model"]["dtype"]),
        ("seed", str(config["seed"])),
    ]
    parts = [
        "## Data\n\n" + _table(["source", "records", "instruction of records without one"], sources),
        "## Training\n\n" + _table(["", ""], recipe),
    ]
    if run.evaluations:
        parts.append("## On held-out pairs while training\n\n" + _heldout(run.evaluations))
    return parts


def _source_name(source: Mapping) -> str:
    names = [_file_name(source[key]) for key in ("path", "positives") if source[key]]
    return " with ".join(f"`{name}`" for name in names)


def _share(source: Mapping) -> str:
    """Which of a source's records: `all`, or the limits that its config sets."""
    limits = [
        f"split {source['split']}" * (source["split"] != "train"),
        f"rows {source['rows']}" * (source["rows"] != ":"),
        f"{source['sample']:.0%} of them" * (source["sample"] != 1),
        f"score ≥ {source['min_score']}" * (source["min_score"] is not None),
        f"weight {source['weight']}" * (source["weight"] is not None),
    ]
    return ", ".join(filter(None, limits)) or "all"


def _heldout(evaluations: Mapping[int, dict]) -> str:
    keys = [key for row in evaluations.values() for key in row if key.startswith("eval/")]
    rows = [
        [key.removeprefix("eval/"), *(f"{row[key]:.4f}" if key in row else "" for row in evaluations.values())]
        for key in dict.fromkeys(keys)
    ]
    return _table(["metric", *(f"step {step:,}" for step in evaluations)], rows)


def _measured(results: Mapping) -> str:
    rows = [(row["task"], row["metric"], f"{row['n']:,}", f"{row['value']:.4f}") for row in results["results"]]
    return "## Results\n\n" + _table(["task", "metric", "n", "value"], rows)


def _versions(run: Run | None, results: Mapping | None) -> str:
    rows = [("exported with", f"e5jax {e5jax.__version__}, jax {version('jax')}")]
    if run:
        rows.insert(0, ("trained with", f"e5jax {run.config['run']['e5jax']}"))
    if results and results.get("versions"):
        rows.append(("measured with", ", ".join(f"{name} {number}" for name, number in results["versions"].items())))
    return "## Versions\n\n" + _table(["", ""], rows)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    clean = lambda cell: " ".join(str(cell).replace("|", "\\|").split())
    return "\n".join("| " + " | ".join(map(clean, line)) + " |" for line in lines)
