"""Hugging Face's names for an encoder: the tensors and config.json of BERT and XLM-R."""

from collections.abc import Mapping
from pathlib import Path

from e5jax.bert import BertConfig
from e5jax.settings import number, refuse
from e5jax.tensors import Table


_LAYER = "encoder.layer.{}."
TABLE: Table = {
    "embed": ("embeddings.word_embeddings.weight", 0),
    "embed_position": ("embeddings.position_embeddings.weight", 0),
    "embed_type": ("embeddings.token_type_embeddings.weight", 0),
    "norm.scale": ("embeddings.LayerNorm.weight", 0),
    "norm.shift": ("embeddings.LayerNorm.bias", 0),
    **{
        f"layers.{ours}.{leaf}": (f"{_LAYER}{theirs}.{kind}", inputs if leaf == "w" else 0)
        for ours, (theirs, inputs) in {
            "q": ("attention.self.query", 1),
            "k": ("attention.self.key", 1),
            "v": ("attention.self.value", 1),
            "o": ("attention.output.dense", 2),
            "up": ("intermediate.dense", 1),
            "down": ("output.dense", 1),
        }.items()
        for leaf, kind in (("w", "weight"), ("b", "bias"))
    },
    **{
        f"layers.{ours}.{leaf}": (f"{_LAYER}{theirs}.LayerNorm.{kind}", 0)
        for ours, theirs in {"attn_norm": "attention.output", "mlp_norm": "output"}.items()
        for leaf, kind in (("scale", "weight"), ("shift", "bias"))
    },
}
PREFIXES = ("bert.", "roberta.")  # in front of every name where the file holds a model with a head
RENAMED = {".gamma": ".weight", ".beta": ".bias"}  # the norms of BERT's first releases
# The pooler and the heads of other tasks; a table of positions.
NOT_OURS = r"(pooler|cls|lm_head|classifier)\..*|embeddings\.position_ids"

# model_type -> its class, and what transformers (5.23) takes for a key that is absent.
FAMILIES: dict[str, tuple[str, dict]] = {
    "bert": ("BertModel", {"vocab_size": 30_522, "type_vocab_size": 2, "pad_token_id": 0}),
    "xlm-roberta": ("XLMRobertaModel", {"vocab_size": 30_522, "type_vocab_size": 2, "pad_token_id": 1}),
}
SIZES = {  # ours -> theirs
    "vocab_size": "vocab_size",
    "dim": "hidden_size",
    "hidden": "intermediate_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "positions": "max_position_embeddings",
    "token_types": "type_vocab_size",
}
# Keys that change the computation -> (the values that leave it ours, what any other asks for).
REFUSED = {
    "hidden_act": (("gelu",), "another activation than gelu"),
    "position_embedding_type": (("absolute",), "relative positions"),
    "is_decoder": ((False,), "a decoder"),
    "add_cross_attention": ((False,), "attention to another text"),
    "embedding_size": ((), "embeddings of another width"),
}


def table(cfg: BertConfig) -> Table:
    """The tensors of an encoder."""
    return TABLE


def read_config(stored: Mapping, where: Path) -> BertConfig:
    """What a config.json says; an absent key means what it means in transformers."""
    family = stored["model_type"]
    raw = {k: v for k, v in (FAMILIES[family][1] | stored).items() if v is not None}
    padding = {"bert": (0,), "xlm-roberta": (1,)}[family]
    refuse(raw, REFUSED | {"pad_token_id": (padding, f"another padding id than {padding[0]}")}, where)
    return BertConfig(
        **{ours: number(raw, theirs, int, where) for ours, theirs in SIZES.items()},
        family=family,
        norm_eps=number({"layer_norm_eps": 1e-12} | raw, "layer_norm_eps", float, where),
    )


def config_json(cfg: BertConfig) -> dict:
    """What transformers, sentence-transformers, TEI and vLLM read."""
    name, defaults = FAMILIES[cfg.family]
    return {
        "architectures": [name],
        **{theirs: getattr(cfg, ours) for ours, theirs in SIZES.items()},
        "hidden_act": "gelu",
        "layer_norm_eps": cfg.norm_eps,
        "position_embedding_type": "absolute",
        "pad_token_id": defaults["pad_token_id"],
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "initializer_range": 0.02,
        "use_cache": False,
    }
