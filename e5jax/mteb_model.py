"""What mteb evaluates: our Encoder, BM25, or a sentence-transformers model, each behind mteb's own protocol.

Every model keeps `prompts_used`: task -> {"query": ..., "passage": ...}, what really stood in front of the texts. Where
both sides of a task are alike (STS, clustering, ...) the instruction goes in front of every text, as in E5-Mistral's
evaluation; where they are not, in front of queries alone.
"""

import dataclasses
import functools
import logging
import warnings
from pathlib import Path

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from tqdm import tqdm

from e5jax import heldout, places
from e5jax.encoder import WINDOW, Encoder
from e5jax.errors import UserError
from e5jax.prompts import PromptTable, instruction, load_table
from e5jax.tasks import require_mteb
from e5jax.vectors import Kept


BM25 = "bm25"
SENTENCE_TRANSFORMERS = "sentence-transformers:"
# mteb's prompt type, and our names of the texts it is about; None where both sides of a task are alike.
SIDES = {"query": ("query",), "document": ("passage",), None: ("query", "passage")}
logger = logging.getLogger(__name__)


def open_mteb_model(
    name: str, *, max_length: int | None, dtype: str | None, mesh: Mesh | None, prompts: str | None, kept: Kept
):
    """`bm25`, `sentence-transformers:NAME_OR_DIR`, or whatever `Encoder.load` takes, as a model for `run_task`.

    `prompts` as for `load_table`; `kept`: of its vectors, where it has some. Raises UserError where a model cannot be
    opened or an option does not fit it.
    """
    require_mteb()
    table = load_table(prompts)
    if name == BM25:
        return Bm25()
    if name.startswith(SENTENCE_TRANSFORMERS):
        if table.chosen and table.instructions is not None:
            raise UserError(f"{name} has its prompts in its own files: --prompts {prompts} is for other models")
        return _sentence_transformer(name.removeprefix(SENTENCE_TRANSFORMERS), max_length, dtype, table, kept)
    encoder = Encoder.load(name, max_length=max_length, dtype=dtype, mesh=mesh)
    kept.check(encoder.model.cfg.dim)
    return MtebModel(encoder=encoder, table=table, name=name, kept=kept)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class MtebModel:
    """An Encoder as mteb's EncoderProtocol."""

    encoder: Encoder
    table: PromptTable
    name: str
    kept: Kept
    """What is compared of its vectors."""
    prompts_used: dict[str, dict[str, str]] = dataclasses.field(default_factory=dict)

    def encode(self, inputs, *, task_metadata, hf_split, hf_subset, prompt_type=None, **_) -> np.ndarray:
        """Batches of {"text": [...]} -> float32 [texts, dims], unit norm, in order."""
        sides = SIDES[prompt_type and prompt_type.value]
        name, kind = task_metadata.name, task_metadata.type
        before = self.before(name, kind, _default(task_metadata), sides)
        _note(self.prompts_used, task_metadata, sides, before)
        texts = [before + text for batch in inputs for text in batch["text"]]
        encoder, vectors, cut = self.encoder, [], 0
        subset = "" if hf_subset == "default" else f" {hf_subset}"
        what = f"{task_metadata.name}{subset} {' and '.join(sides)}"
        with tqdm(total=len(texts), desc=what, unit=" texts", leave=False, disable=None) as bar:
            for start in range(0, len(texts), WINDOW):
                ids, longer = encoder.tokenizer.encode_counting(texts[start : start + WINDOW], encoder.max_length)
                vectors.append(encoder.encode_ids(ids, lambda which: bar.update(len(which))))
                cut += longer
        if cut:
            logger.warning(
                "%s: %d of %d texts were longer than %d tokens and cut", what, cut, len(texts), encoder.max_length
            )
        return self.kept.apply(np.concatenate(vectors) if vectors else encoder.encode([]))

    def before(self, task: str, task_type: str, default: str, sides: tuple[str, ...]) -> str:
        """What goes in front of texts; an instruction only for models whose files take one, or where the user chose.

        `default` is the instruction of a task that the table lacks.
        """
        prompts = self.encoder.prompts
        if self.table.instructions is None:
            return ""
        if sides == ("passage",):
            return prompts.passage
        if not self.table.chosen and "{task}" not in (prompts.query or ""):
            return prompts.before_query(None)
        return prompts.before_query(instruction(self.table, task, task_type, default))

    def similarity(self, embeddings1, embeddings2):
        """Cosines [A, B] of vectors [A, D] and [B, D]."""
        from mteb.similarity_functions import cos_sim

        return cos_sim(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1, embeddings2):
        """Cosines [A] of vectors [A, D] with vectors [A, D]."""
        from mteb.similarity_functions import pairwise_cos_sim

        return pairwise_cos_sim(embeddings1, embeddings2)

    @functools.cached_property
    def mteb_model_meta(self):
        """What is known of the model; what is not is None, above all which mteb tasks it was trained on."""
        from mteb.models import ModelMeta
        from mteb.models.model_meta import ScoringFunction

        encoder, weights = self.encoder, jax.tree.leaves(nnx.state(self.encoder.model))
        return ModelMeta.create_empty(
            overwrites={
                "name": f"e5jax/{Path(self.name).name}",
                "revision": encoder.digest,
                "n_parameters": sum(w.size for w in weights),
                "n_embedding_parameters": encoder.model.embed.size,
                "memory_usage_mb": sum(w.nbytes for w in weights) / 2**20,
                "max_tokens": encoder.max_length,
                "embed_dim": self.kept.check(encoder.model.cfg.dim),
                "framework": ["JAX"],
                "similarity_fn_name": ScoringFunction.COSINE,
                "use_instructions": self.table.chosen or "{task}" in (encoder.prompts.query or ""),
            }
        )


def _default(metadata) -> str:
    """The instruction that mteb has for a task's queries: of its metadata, else of its type; "" where it has none."""
    from mteb.abstasks.abstask import get_abstask_prompt

    prompt = metadata.prompt
    prompt = prompt.get("query") if isinstance(prompt, dict) else prompt
    return prompt or get_abstask_prompt(metadata.name)


def _note(prompts_used: dict[str, dict[str, str]], metadata, sides: tuple[str, ...], before: str) -> None:
    prompts_used.setdefault(metadata.name, {}).update(dict.fromkeys(sides, before))


class Bm25:
    """BM25 over `heldout.words` (Lucene's variant, k1 1.5, b 0.75) as mteb's SearchProtocol; it searches only."""

    def __init__(self):
        self.prompts_used: dict[str, dict[str, str]] = {}

    def index(self, corpus, *, task_metadata, hf_split, hf_subset, encode_kwargs, num_proc, **_) -> None:
        """Takes in the documents: title and text."""
        self._ids = list(corpus["id"])
        texts = corpus["text"]
        titles = corpus["title"] if "title" in corpus.column_names else [""] * len(texts)
        self._score = heldout.bm25(f"{title or ''} {text}" for title, text in zip(titles, texts, strict=True))

    def search(
        self, queries, *, task_metadata, hf_split, hf_subset, top_k, encode_kwargs, num_proc, top_ranked=None, **_
    ) -> dict[str, dict[str, float]]:
        """Query id -> {document id: score} of the `top_k` best, among `top_ranked[query]` where it is given."""
        from mteb._create_dataloaders import _retrieval_texts
        from mteb.types import PromptType

        _note(self.prompts_used, task_metadata, SIDES[None], "")
        row = {id_: number for number, id_ in enumerate(self._ids)}
        found = {}
        for query, text in zip(queries["id"], _retrieval_texts(queries, PromptType.query), strict=True):
            scores = self._score(text)
            rows = np.arange(len(scores)) if top_ranked is None else np.array([row[id_] for id_ in top_ranked[query]])
            # Documents without a common word stay in, as in mteb's own BM25.
            best = rows[np.argsort(-scores[rows], kind="stable")[:top_k]]
            found[query] = {self._ids[i]: float(scores[i]) for i in best}
        return found

    @functools.cached_property
    def mteb_model_meta(self):
        """mteb's record of the model."""
        from mteb.models import ModelMeta

        about = {"name": "e5jax/bm25", "revision": "lucene", "model_type": ["sparse"], "use_instructions": False}
        return ModelMeta.create_empty(overwrites=about)


def open_sentence_transformer(name: str):
    """sentence-transformers' own model of that folder or hub name; weights from safetensors only.

    Raises UserError where the library is missing or cannot open it.
    """
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise UserError(f"{SENTENCE_TRANSFORMERS}{name} needs pip install sentence-transformers ({error})") from None
    try:
        return SentenceTransformer(places.named(name), model_kwargs={"use_safetensors": True})
    except Exception as error:  # of many kinds: no such folder, no network, no safetensors, ...
        raise UserError(f"{name}: sentence-transformers cannot open it: {error}") from error


def _sentence_transformer(name: str, max_length: int | None, dtype: str | None, table: PromptTable, kept: Kept):
    """mteb's wrapper around a sentence-transformers model, with `prompts_used`."""
    model = open_sentence_transformer(name)
    import torch
    from mteb.models.abs_encoder import get_prompt
    from mteb.models.sentence_transformer_wrapper import SentenceTransformerEncoderWrapper

    class Wrapper(SentenceTransformerEncoderWrapper):
        """Notes which of the model's own prompts is used; gives what is kept of its vectors."""

        def encode(self, inputs, *, task_metadata, prompt_type=None, **rest):
            before = get_prompt(self.model_prompts, task_metadata, prompt_type) or ""
            _note(self.prompts_used, task_metadata, SIDES[prompt_type and prompt_type.value], before)
            return kept.apply(super().encode(inputs, task_metadata=task_metadata, prompt_type=prompt_type, **rest))

    if dtype is not None:
        model = model.to(getattr(torch, dtype))
    kept.check(model.get_embedding_dimension())
    model.max_seq_length = max_length or model.max_seq_length
    if table.instructions is None:
        model.prompts, model.default_prompt_name = {}, None
    with warnings.catch_warnings():  # the wrapper's remarks on sentence-transformers' new names
        warnings.simplefilter("ignore")
        wrapper = Wrapper(model)
    wrapper.prompts_used = {}
    return wrapper
