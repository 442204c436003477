"""Encoders small enough to compile in a second, their folders, and transformers' models of the same sizes."""

import dataclasses
import functools
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import tokenizers
from flax import nnx
from tokenizers import decoders, models, pre_tokenizers, processors, trainers

from e5jax import hf
from e5jax.bert import Bert, BertConfig
from tests import tiny


# Every size is another, so that no transposed weight fits and a shape tells what it belongs to.
BERT = BertConfig(
    family="bert",
    vocab_size=500,
    dim=24,
    hidden=40,
    layers=3,
    heads=6,
    positions=512,
    token_types=2,
    norm_eps=1e-3,  # large enough to be seen
)
XLM_R = dataclasses.replace(BERT, family="xlm-roberta", positions=514, token_types=1)
FAMILIES = {cfg.family: cfg for cfg in (BERT, XLM_R)}
# Their tokenizers' special tokens, by id; what stands in front, what behind; what files name.
SPECIAL = {
    "bert": ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"],
    "xlm-roberta": ["<s>", "<pad>", "</s>", "<unk>", "<mask>"],
}
ENDS = {"bert": ("[CLS]", "[SEP]"), "xlm-roberta": ("<s>", "</s>")}
NAMES = {
    "bert": dict(pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]"),
    "xlm-roberta": dict(pad_token="<pad>", unk_token="<unk>", cls_token="<s>", sep_token="</s>", mask_token="<mask>"),
}
TEXTS = [
    "how do bees find their way home",
    "wie finden Bienen nach Hause?",
    "как пчёлы находят дорогу домой",
    "蜜蜂怎样找到回家的路",
    "",
    "long text about bees " * 10,
]


@functools.cache
def _encoder(cfg: BertConfig, seed: int):
    def make():
        model = Bert(cfg, jnp.float32, rngs=nnx.Rngs(seed))
        for table in (model.embed, model.embed_position, model.embed_type):
            table[...] *= 50  # tokens and places far apart, for attention to be sharp
        return model

    return tiny.jit(make)()


def encoder(cfg: BertConfig = BERT, seed: int = 0) -> Bert:
    """Random weights; another module around the same arrays each time, for a test to change."""
    return tiny._fresh(_encoder(cfg, seed))


def tokenizer(family: str) -> tokenizers.Tokenizer:
    """A byte-level BPE with the family's special tokens and ends: no text is unknown to it."""
    tokens = tokenizers.Tokenizer(models.BPE(unk_token=NAMES[family]["unk_token"]))
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=SPECIAL[family],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokens.train_from_iterator(TEXTS, trainer)
    first, last = ENDS[family]
    special = [(end, tokens.token_to_id(end)) for end in (first, last)]
    tokens.post_processor = processors.TemplateProcessing(single=f"{first} $A {last}", special_tokens=special)
    return tokens


def save_tokenizer(family: str, directory: Path) -> None:
    """tokenizer.json, and the file that names its tokens."""
    tokenizer(family).save(str(directory / "tokenizer.json"))
    config = NAMES[family] | {"tokenizer_class": "PreTrainedTokenizerFast"}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))


def folder(directory: Path, cfg: BertConfig = BERT, seed: int = 0) -> Path:
    """A model folder in Hugging Face's format with its tokenizer."""
    hf.save(nnx.to_pure_dict(nnx.state(encoder(cfg, seed))), cfg, "float32", directory)
    save_tokenizer(cfg.family, directory)
    return directory


def theirs(cfg: BertConfig):
    """transformers' model of that shape: random weights, norms far from ones, biases far from zeros."""
    import torch
    import transformers

    kinds = {
        "bert": (transformers.BertModel, transformers.BertConfig),
        "xlm-roberta": (transformers.XLMRobertaModel, transformers.XLMRobertaConfig),
    }
    model_class, config_class = kinds[cfg.family]
    torch.manual_seed(0)
    config = config_class(
        vocab_size=cfg.vocab_size,
        hidden_size=cfg.dim,
        intermediate_size=cfg.hidden,
        num_hidden_layers=cfg.layers,
        num_attention_heads=cfg.heads,
        max_position_embeddings=cfg.positions,
        type_vocab_size=cfg.token_types,
        layer_norm_eps=cfg.norm_eps,
        pad_token_id={"bert": 0, "xlm-roberta": 1}[cfg.family],
        attn_implementation="eager",
    )
    model = model_class(config).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.normal_(1.0 if "LayerNorm.weight" in name else 0.0, 0.3)
    return model


def texts(lengths, seed: int = 0) -> list[np.ndarray]:
    """Token ids that are neither special nor padding."""
    rng = np.random.default_rng(seed)
    return [rng.integers(5, BERT.vocab_size, length) for length in lengths]
