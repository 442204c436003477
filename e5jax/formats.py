"""Text to token ids: the instruction template, and a tokenizer that marks both ends of a text.

A decoder that pools the last token embeds a text at `</s>`, so that is what must never be missing
at its end (Wang et al. 2024, arXiv 2401.00368, section 3.2). Tokenizer folders say in several places
what stands around a text, and libraries disagree on which to believe; here the ids are found once,
when the folder is read, and appended by us.
"""

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers.processors import TemplateProcessing

from e5jax.errors import UserError


BOS, EOS = "<s>", "</s>"
# Tokens that a tokenizer's files name and other libraries look for; what stands around a text is found, not read.
NAMED = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")


INSTRUCT = "Instruct: {task}\nQuery: "  # equation 1 of the paper


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompts:
    """What a model's own files want in front of its texts."""

    query: str | None
    """In front of queries; `{task}` in it is where the instruction goes. None: they ask for nothing."""
    passage: str = ""
    """In front of passages; the paper's models read them bare."""

    def before_query(self, task: str | None) -> str:
        """What goes in front of a query: the model's own words where they have no place for a task; else the task in
        them, in the paper's template where it has none; without a task nothing.
        """
        template = INSTRUCT if self.query is None else self.query
        if "{task}" not in template:
            return template
        return template.replace("{task}", task) if task else ""


PAPER = Prompts(query=INSTRUCT)
"""Queries under their instruction, passages bare."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Tokenizer:
    """A `tokenizers` model and the ids that go before and after every text."""

    tokens: tokenizers.Tokenizer
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    named: Mapping[str, str]
    """`NAMED` -> the token, of those that its files name; `save` hands them on."""
    digest: str
    """sha256 of everything that decides the ids; the same for a tokenizer and its saved copy."""

    @classmethod
    def load(cls, directory: Path) -> "Tokenizer":
        """Reads `tokenizer.json`; where its post-processor appends nothing, `eos_token` beside it.

        `add_eos_token` is not looked at: transformers 5 ignores it, older versions do not.
        """
        file = Path(directory) / "tokenizer.json"
        if not file.is_file():
            raise UserError(
                f"{file}: no such file; transformers writes one: "
                'AutoTokenizer.from_pretrained("NAME").save_pretrained("FOLDER")'
            )
        try:
            return cls._read(file)
        except (UserError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # the library raises nothing narrower, and no Exception where Rust panics
            raise UserError(f"{file}: not a tokenizer: {error}") from error

    @classmethod
    def _read(cls, file: Path) -> "Tokenizer":
        directory = file.parent
        tokens = tokenizers.Tokenizer.from_file(str(file))
        tokens.no_truncation()
        tokens.no_padding()
        probe = tokens.encode("a")
        body = [i for i, sequence in enumerate(probe.sequence_ids) if sequence is not None]
        prefix = tuple(probe.ids[: body[0]])
        suffix = tuple(probe.ids[body[-1] + 1 :]) or (_eos(directory, tokens),)
        stated = {name: _stated(directory, name) for name in NAMED}
        # One that the vocabulary lacks would be added behind the last id, where the model has no embedding.
        named = {name: token for name, token in stated.items() if token and tokens.token_to_id(token) is not None}
        return dataclasses.replace(cls.around(tokens, prefix, suffix), named=named)

    @classmethod
    def around(cls, tokens: tokenizers.Tokenizer, prefix: tuple[int, ...], suffix: tuple[int, ...]) -> "Tokenizer":
        """Puts `prefix` and `suffix` into the post-processor: a saved copy means the same to every library."""
        names = {tokens.id_to_token(i): i for i in (*prefix, *suffix)}
        tokens.post_processor = TemplateProcessing(
            single=[*map(tokens.id_to_token, prefix), "$A", *map(tokens.id_to_token, suffix)],
            special_tokens=list(names.items()),
        )
        digest = hashlib.sha256(tokens.to_str().encode()).hexdigest()
        return cls(tokens=tokens, prefix=prefix, suffix=suffix, named={}, digest=digest)

    def __len__(self) -> int:
        """One more than the highest id."""
        return max(self.tokens.get_vocab().values()) + 1

    def save(self, directory: Path, max_length: int | None = None) -> None:
        """Writes a folder that `load`, transformers and sentence-transformers all read alike.

        `max_length` is the limit that it states, in tokens with special ones (None: it states none).
        """
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        self.tokens.save(str(directory / "tokenizer.json"))
        end = self.tokens.id_to_token(self.suffix[-1])
        # Padding is masked, so the end serves for it where the files name none.
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": end, "pad_token": end} | dict(self.named)
        if self.prefix:
            config["bos_token"] = self.tokens.id_to_token(self.prefix[0])
        if max_length is not None:
            config["model_max_length"] = max_length
        (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")

    def encode(self, texts: Sequence[str], max_length: int) -> list[np.ndarray]:
        """int32 ids of each text, `<s>` and `</s>` in at most `max_length`: what is cut is text."""
        return self.encode_counting(texts, max_length)[0]

    def encode_counting(self, texts: Sequence[str], max_length: int) -> tuple[list[np.ndarray], int]:
        """`encode`, and how many of the texts were cut."""
        room = max_length - len(self.prefix) - len(self.suffix)
        if room < 1:
            raise UserError(f"max_length {max_length} leaves no room beside the special tokens")
        encodings = self.tokens.encode_batch_fast(list(texts), add_special_tokens=False)
        bodies = [encoding.ids for encoding in encodings]
        ids = [np.array([*self.prefix, *body[:room], *self.suffix], np.int32) for body in bodies]
        return ids, sum(len(body) > room for body in bodies)


def _eos(directory: Path, tokens: tokenizers.Tokenizer) -> int:
    if (content := _stated(directory, "eos_token")) is None:
        raise UserError(f"{directory}: no end-of-text token; set eos_token in tokenizer_config.json")
    if (number := tokens.token_to_id(content)) is None:
        raise UserError(f"{directory}: eos_token {content!r} is not in tokenizer.json's vocabulary")
    return number


def _stated(directory: Path, name: str) -> str | None:
    """The token that the files beside tokenizer.json give this name."""
    for file in (directory / "tokenizer_config.json", directory / "special_tokens_map.json"):
        if not file.is_file():
            continue
        try:
            token = json.loads(file.read_text(encoding="utf-8")).get(name)
            content = token["content"] if isinstance(token, dict) else token
        except (ValueError, AttributeError, KeyError) as error:
            raise UserError(f"{file}: not a JSON object: {error}") from None
        if isinstance(content, str):
            return content
    return None


def train_tokenizer(texts: Iterable[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE of at most `vocab_size` pieces with <s> and </s>, learnt from the texts: no text is unknown."""
    tokens = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokens.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[BOS, EOS],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokens.train_from_iterator(texts, trainer)
    return Tokenizer.around(tokens, prefix=(tokens.token_to_id(BOS),), suffix=(tokens.token_to_id(EOS),))
