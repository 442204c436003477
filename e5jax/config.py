"""What each command depends on: frozen dataclasses. A config file's `get_config()` returns one; command.py reads it."""

import dataclasses
import math
from typing import Annotated, Literal

import tyro

from e5jax.bert import BertConfig
from e5jax.contrast import Contrast
from e5jax.decoder import PROJECTIONS as DECODER_PROJECTIONS
from e5jax.decoder import DecoderConfig
from e5jax.formats import INSTRUCT, Prompts
from e5jax.pooling import Kind
from e5jax.prompts import nearest
from e5jax.public_sets.sets import SETS
from e5jax.records import Source


frozen = dataclasses.dataclass(frozen=True, kw_only=True)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@frozen
class Pretrained:
    """Start from a trained model: a decoder, or an encoder such as BERT."""

    base: str
    """A directory in Hugging Face's format, a hub name, or the workdir of an earlier run."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Dtype of the frozen weights and of all products; adapters and trained weights are float32."""
    pooling: Kind | None = None
    """Another pooling than its files say: last, mean, weighted_mean, cls, or latent (NV-Embed; only e5jax reads it)."""
    causal: bool | None = None
    """False: a decoder whose tokens see both sides."""
    keep_layers: tuple[int, ...] | None = None
    """Only these layers, from 0: the start of a smaller student."""


@frozen
class FromScratch:
    """Start from random weights."""

    architecture: Annotated[DecoderConfig | BertConfig, tyro.conf.AvoidSubcommands]
    tokenizer: str | None = None
    """Directory with tokenizer.json; None trains a byte-level BPE on the training texts, of `vocab_size`."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of all products."""


@frozen
class LoraConfig:
    """Adapters beside frozen projections."""

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.1
    targets: tuple[str, ...] | None = None
    """None: all of the model's, q, k, v, o, up, down and, in decoders, gate."""

    def __post_init__(self):
        _require(self.rank > 0, f"rank must be positive, got {self.rank}")
        unknown = [target for target in self.targets or () if target not in DECODER_PROJECTIONS]
        known = ", ".join(DECODER_PROJECTIONS)
        _require(not unknown, f"lora.targets {unknown} name no projection; choose from {known}")
        _require(0 <= self.dropout < 1, f"dropout must be in [0, 1), got {self.dropout}")


@frozen
class DataConfig:
    """Records in, token ids out."""

    train: tuple[Source, ...]
    max_length: int = 512
    """Tokens of a text, <s> and </s> included; longer texts are cut before </s>."""
    max_negatives: int = 1
    """Hard negatives a query brings at most; the first ones of its record."""
    query_prompt: str = INSTRUCT
    """In front of every query; `{task}` in it is where the record's task goes, and a query without one stays bare. The
    paper's template, unless something else is said: "query: " for E5's, "" for bare queries."""
    passage_prompt: str = ""
    """In front of every passage; "passage: " for E5's."""
    on_bad_record: Literal["stop", "skip"] = "stop"
    """What to do with a record that cannot be used."""
    same_source_batches: bool = False
    """Draw all of a batch from one source, so that its negatives are of one kind."""
    cache: str = "~/.cache/e5jax"
    """Where tokenised sources are kept for the next run."""

    def __post_init__(self):
        _require("://" not in self.cache, f"data.cache {self.cache}: it is mapped into memory: name a folder here")
        _require(len(self.train) > 0, "data.train names no source")
        weighted = sum(source.weight is not None for source in self.train)
        _require(weighted in (0, len(self.train)), "data.train: give all sources a weight, or none")
        _require(self.max_length >= 8, f"max_length must be at least 8, got {self.max_length}")
        _require(self.max_negatives >= 0, f"max_negatives is negative: {self.max_negatives}")

    @property
    def prompts(self) -> Prompts:
        """What goes in front of texts."""
        return Prompts(query=self.query_prompt, passage=self.passage_prompt)


@frozen
class DistillConfig:
    """Learn from a teacher's vectors, too. Weights of the losses; what is 0 is not computed."""

    teacher: str
    """Any folder that `Encoder.load` takes, or sentence-transformers:NAME."""
    live: bool = False
    """Run the teacher in every step: it needs the student's own tokenizer, and reads texts as the student does. Else
    its vectors are computed once, with its own tokenizer and prompts, and kept in data.cache."""
    match: float = 1.0
    """1 - cosine to the teacher's vector, of queries, positives and hard negatives."""
    kl: float = 0.0
    """Divergence of the scores of each query over the passages of the batch."""
    margin_mse: float = 0.0
    """Squared error of each query's margin between its passage and its own hard negative."""
    contrastive: float = 0.0
    """The InfoNCE loss beside them."""
    temperature: float = 0.05
    """Of the teacher's scores in `kl`; the student's is the run's `temperature`."""

    def __post_init__(self):
        weights = (self.match, self.kl, self.margin_mse, self.contrastive)
        _require(min(weights) >= 0 and any(weights[:3]), "distill: a loss must weigh more than 0, and none less")
        _require(self.temperature > 0, f"distill.temperature must be positive, got {self.temperature}")


@frozen
class EvalSet:
    """Held-out pairs: every query against every passage of the set."""

    name: str
    sources: tuple[Source, ...]
    """Records whose queries are asked and whose positives are right."""
    pool: tuple[Source, ...] = ()
    """Further records; their passages only make the search harder."""


@frozen
class PackingConfig:
    """The shape of a batch; see packing.py."""

    widths: tuple[int, ...] = (512, 128)
    """Row widths, widest first; the widest holds the longest text."""
    chunks: int | None = None
    """Parts of a batch that a device encodes one after the other. None: the best that fits the memory, as below."""
    kept: int | None = None
    """Of the chunks, those that keep their activations; the others keep only their vectors and are encoded again in the
    backward pass (GradCache). The gradient is the same. None: as many as fit."""
    memory_gb: float | None = None
    """What a step may take on a device. None: what the device says it has; on a CPU half of the memory."""
    spare: float = 0.25
    """Room for batches longer than those looked at before the start, as a fraction of the longest of them."""

    def __post_init__(self):
        ordered = tuple(sorted(set(self.widths), reverse=True)) == self.widths
        _require(bool(self.widths) and ordered, f"widths go from wide to narrow, got {self.widths}")
        _require(self.chunks is None or self.chunks >= 1, f"chunks must be at least 1, got {self.chunks}")
        _require(self.kept is None or self.kept >= 0, f"kept must not be negative, got {self.kept}")
        _require(self.memory_gb is None or self.memory_gb > 0, f"memory_gb must be positive, got {self.memory_gb}")
        _require(self.spare >= 0, f"spare must not be negative, got {self.spare}")


@frozen
class DistributedConfig:
    """Several processes that make one run: a host each, and the same command on all."""

    coordinator: str | None = None
    """HOST:PORT of process 0. None: what the launcher says (a TPU pod on GKE, Slurm, Open MPI), or a single process."""
    processes: int | None = None
    process: int | None = None
    """Which of them this is, from 0."""
    heartbeat_s: int = 100
    """Seconds without a sign of life after which a process counts as dead and the others end."""
    step_limit_s: float | None = 3600
    """Seconds that a step, an evaluation or a save may take; then all stacks are printed and the process ends."""

    def __post_init__(self):
        _require(self.heartbeat_s > 0, f"heartbeat_s must be positive, got {self.heartbeat_s}")
        _require(self.step_limit_s is None or self.step_limit_s > 0, f"step_limit_s is {self.step_limit_s}")


@frozen
class OptimConfig:
    """AdamW, linear warm-up, linear decay to zero at the last step."""

    peak_lr: float = 1e-4
    warmup_steps: int = 100
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    b1: float = 0.9
    b2: float = 0.999

    def __post_init__(self):
        _require(self.peak_lr > 0, f"peak_lr must be positive, got {self.peak_lr}")
        _require(self.warmup_steps >= 0, f"warmup_steps is negative: {self.warmup_steps}")
        _require(self.clip_norm > 0, f"clip_norm must be positive, got {self.clip_norm}")


@frozen
class TrainConfig:
    """Everything a training run depends on; stored as config.json in its workdir."""

    workdir: str
    """Where the run writes; a workdir that holds this run's checkpoints is resumed."""
    steps: int
    batch_size: int
    """Queries a step, over all devices."""
    model: Annotated[Pretrained | FromScratch, tyro.conf.AvoidSubcommands]
    data: DataConfig
    lora: Annotated[LoraConfig | None, tyro.conf.AvoidSubcommands] = LoraConfig()
    """None trains every weight."""
    eval: tuple[EvalSet, ...] = ()
    packing: PackingConfig = PackingConfig()
    optim: OptimConfig = OptimConfig()
    temperature: float = 0.02
    contrast: Contrast = Contrast()
    """What queries are told from besides passages; as it is, the paper's loss."""
    matryoshka: tuple[int, ...] = ()
    """Also train the first so many dimensions of the vectors, such as 64 128 256; losses are averaged."""
    distill: Annotated[DistillConfig | None, tyro.conf.AvoidSubcommands] = None
    dropout: float = 0.0
    """Of hidden states, base included: 0.1 in BERT's own training, and what SimCSE learns from."""
    seed: int = 0
    eval_every: int = 100
    """Steps between evaluations on held-out pairs; there is always one before the first step and after the last."""
    checkpoint_every: int = 100
    """Steps between checkpoints; the last step always has one."""
    skip_non_finite: int = 0
    """Steps in a row that may have no finite loss or gradient and are left out; one more stops the run."""
    mesh: tuple[int, int, int] = (-1, 1, 1)
    """Devices along (data, fsdp, tensor). Frozen weights are copied over data, split over fsdp and tensor."""
    distributed: DistributedConfig = DistributedConfig()
    remat: bool | None = None
    """Recompute each layer in the backward pass: about a third more work for a tenth of the memory. None: where that
    is the cheapest way to fit the memory."""
    init_from: str | None = None
    """Start from the adapters (or weights) of another run."""
    extend: bool = False
    """Resume with more `steps` than the run was started with; the decay is stretched to the new end."""
    profile_steps: str | None = None
    """A:B writes an XProf trace of steps A to B into the workdir."""
    wandb_project: str | None = None
    """Also report to Weights & Biases (the key from its own environment variable)."""

    def __post_init__(self):
        _require(self.steps > 0, f"steps must be positive, got {self.steps}")
        _require(self.batch_size > 1, f"batch_size must be at least 2, got {self.batch_size}")
        _require(self.temperature > 0, f"temperature must be positive, got {self.temperature}")
        _require(self.eval_every > 0, f"eval_every must be positive, got {self.eval_every}")
        _require(
            self.checkpoint_every > 0,
            f"checkpoint_every must be positive, got {self.checkpoint_every}",
        )
        _require(self.skip_non_finite >= 0, f"skip_non_finite must not be negative, got {self.skip_non_finite}")
        widest, longest = self.packing.widths[0], self.data.max_length
        _require(
            widest >= longest,
            f"packing.widths {self.packing.widths} hold no text of data.max_length {longest} tokens",
        )
        _require(0 <= self.dropout < 1, f"dropout must be in [0, 1), got {self.dropout}")
        hard = self.distill is None or not self.distill.margin_mse or self.data.max_negatives > 0
        _require(hard, "distill.margin_mse compares with hard negatives, and data.max_negatives is 0")
        _require(all(dims > 0 for dims in self.matryoshka), f"matryoshka dims must be positive: {self.matryoshka}")
        names = [s.name for s in self.eval]
        _require(len(set(names)) == len(names), f"eval names a set twice: {names}")
        if self.profile_steps is not None:
            profile_range(self.profile_steps)


@frozen
class EncodeConfig:
    """Texts -> vectors on disk: .npy shards and an index of ids."""

    model: str
    """A workdir or one of its checkpoints, a Hugging Face or sentence-transformers folder, an adapter, a hub name."""
    input: str
    """.jsonl, .parquet (or a folder of them), a TFDS dataset folder, any other file: a text a line; - reads lines
    from standard input."""
    output: str
    """A folder; one that holds a part of this very job is gone on with."""
    field: str | None = None
    """The field with the text; None: `text`, behind its `title` where there is one, as BEIR's corpora have it."""
    id_field: str | None = None
    """The field with the id; None: `_id` or `id` where there is one, else the number of the text, from 0."""
    split: str = "train"
    """Split of a TFDS dataset."""
    side: Literal["query", "passage"] | None = None
    """Whose prompt in the model's own files goes in front of the texts, where it has one. None: query with an
    instruction or a task, else passage."""
    instruction: str | None = None
    """Put in front of every text, as the model's files want it: for queries, not for passages."""
    task: str | None = None
    """Take the instruction of this task (an MTEB name) from the prompt table."""
    max_length: int | None = None
    """Tokens of a text, special ones included; None: what the model was trained with, else 512."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Dtype of the products; None: as the weights are stored."""
    window: int | None = None
    """Another sliding window than the model's; 0: none."""
    rope_theta: float | None = None
    """Another base of the rotary angles than the model's."""
    rope_scale: float | None = None
    """Make the base so much larger that texts may be so many times as long (NTK-aware scaling)."""
    dims: int | None = None
    """Keep the first so many dimensions and make the length one again (Matryoshka)."""
    quantize: Literal["int8", "binary"] | None = None
    """int8: each vector scaled so that its largest component is ±127. binary: the signs, eight to a byte."""
    shard_size: int = 16_384
    """Texts of a shard, which is also the window that is sorted by length and what an interruption costs."""
    part: str | None = None
    """I/N: this process takes every N-th shard, from the I-th (0 to N-1). None: its place among JAX's processes, where
    jax.distributed was initialised; else all."""

    def __post_init__(self):
        _require(self.instruction is None or self.task is None, "give --instruction or --task, not both")
        _require(self.max_length is None or self.max_length >= 8, f"max_length {self.max_length} is less than 8")
        _require(self.shard_size > 0, f"shard_size must be positive, got {self.shard_size}")
        _require(self.dims is None or self.dims > 0, f"dims must be positive, got {self.dims}")
        if self.part is not None:
            part_of(self.part)


def part_of(part: str) -> tuple[int, int]:
    """`I/N` -> (I, N)."""
    i, _, n = part.partition("/")
    _require(i.isdigit() and n.isdigit() and int(i) < int(n), f"part is I/N with 0 <= I < N, got {part!r}")
    return int(i), int(n)


@frozen
class MineConfig:
    """Hard negatives for training records: passages that a model scores high, yet below the record's positive."""

    output: str
    """A folder; one that holds a part of this very job is gone on with."""
    model: str
    """What scores: whatever `Encoder.load` takes, sentence-transformers:NAME, or bm25."""
    input: tuple[str, ...] = ()
    """Records: files and folders such as a training run's sources name by `path`."""
    train: tuple[Source, ...] = ()
    """In a config file: sources with their options (rows, split, sample, task, ...)."""
    instruction: str | None = None
    """The task of the records of `input` that carry none."""
    corpus: str | None = None
    """Further passages to choose from, in any file that `python -m e5jax.encode` reads; the records' own passages are
    among the pool in any case."""
    negatives: int = 7
    """Of a record at most; those that it brought along count."""
    ranks: tuple[int, int] = (0, 100)
    """Candidates are those of ranks first to last - 1 by the model's score; what is no negative for sure has no rank.
    A first rank above 0 passes over the likeliest right answers."""
    relative: float | None = 0.95
    """Keep only what scores less than this share of the positive's score (NV-Retriever, arXiv 2407.15831)."""
    absolute: float | None = None
    """Keep only what scores less than the positive's score minus this."""
    ceiling: float | None = None
    """Keep only what scores less than this."""
    choose: Literal["top", "sample"] = "top"
    """Among those that are kept, take the hardest, or a random draw."""
    rescore: str | None = None
    """A cross-encoder of sentence-transformers: the three limits, and the order, then go by its scores (0 to 1)."""
    keep_own: bool = True
    """The negatives that a record brought along stay, in front."""
    min_negatives: int = 0
    """Leave out the records that end with fewer."""
    on_bad_record: Literal["stop", "skip"] = "stop"
    """What to do with a record that cannot be used."""
    seed: int = 0
    """Of the random draw."""
    vectors: str | None = None
    """A folder for the pool's vectors, where a run with other limits finds them again; None: within `output`."""
    block_size: int = 8192
    """Records searched at a time: each block reads the pool's vectors once, and is what an interruption costs."""

    def __post_init__(self):
        _require(bool(self.input or self.train), "give --input FILES, or `train` in a config file")
        _require(self.negatives > 0, f"negatives must be positive, got {self.negatives}")
        first, last = self.ranks
        _require(0 <= first < last, f"ranks are FIRST LAST with 0 <= FIRST < LAST, got {first} {last}")
        _require(self.relative is None or 0 < self.relative <= 1, f"relative is in (0, 1], got {self.relative}")
        _require(self.absolute is None or self.absolute >= 0, f"absolute must not be negative, got {self.absolute}")
        few = 0 <= self.min_negatives <= self.negatives
        _require(few, f"min_negatives is {self.min_negatives}, of {self.negatives} negatives at most")
        _require(self.block_size > 0, f"block_size must be positive, got {self.block_size}")
        here = self.vectors is None or "://" not in self.vectors
        _require(here, f"vectors {self.vectors}: they are mapped into memory: name a folder here")


@frozen
class PublicConfig:
    """Public copies of the paper's 13 training sets -> records, a .jsonl a set."""

    input: str
    """A folder with a folder a set (nq/, fever/ …), or with bge-e5data/ or echo-data/, which have all of them."""
    output: str
    """A folder; a set that is there of the same files and settings stays, one of others is refused."""
    sets: tuple[str, ...] = ()
    """nq squad … A set that is not there is an error then. Empty: those that are there."""
    negatives: int = 1
    """Hard negatives of a record, at most; of more, so many are drawn."""
    max_characters: int = 10_000
    """Where a passage is cut; 512 tokens are less than half of it."""
    seed: int = 0
    """Of which positive and which negatives are drawn, where a query has several."""
    force: bool = False
    """Replace what is there."""

    def __post_init__(self):
        for name in self.sets:
            if name not in SETS:
                raise ValueError(f"no public set {name!r}{nearest(name, SETS)}; there are {', '.join(SETS)}")
        if self.negatives < 0 or self.max_characters <= 0:
            raise ValueError("negatives must not be less than 0, and max_characters must be more")


@frozen
class ContaminationConfig:
    """Which evaluation queries stand in training data."""

    train: tuple[str, ...]
    """Whatever a training config's Source takes as path."""
    evaluation: tuple[str, ...] = ()
    """Files of evaluation texts: BEIR's queries.jsonl, or any .jsonl, .csv and .txt."""
    tasks: tuple[str, ...] = ()
    """Tasks of the data folder, as `evaluate` calls them."""
    data_dir: str | None = None
    """The folder with the tasks' data; None: $E5JAX_DATA."""
    output: str
    """Where the report goes, as JSON."""
    write_clean: str | None = None
    """A folder for the sources without the records that match, as JSONL."""

    def __post_init__(self):
        if not self.train:
            raise ValueError("--train names no source")
        if not self.evaluation and not self.tasks:
            raise ValueError("give --evaluation FILE, --tasks NAME, or both")


@frozen
class EvaluateConfig:
    """Models and tasks -> a table of results."""

    output: str
    """A folder for results.json, results.md and the picture; results already in it are not computed again."""
    model: tuple[str, ...] = ()
    """One or more of: what `Encoder.load` takes, bm25, or sentence-transformers:NAME."""
    tasks: tuple[str, ...] = ()
    """Local tasks (stsb-en, xquad-de, tatoeba-fra, banking77, or those of your files under --data-dir), passkey, any
    mteb task or benchmark name."""
    data_dir: str | None = None
    """Folder of local tasks; None: $E5JAX_DATA."""
    prompts: str | None = None
    """A JSON file {task: instruction}, or none; None: the built-in table, for models whose files ask for
    instructions."""
    max_length: int | None = None
    """Tokens of a text, special ones included; None: what the model was trained with, else 512."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Dtype of the products; None: as the weights are stored."""
    window: int | None = None
    """Another sliding window than the model's; 0: none."""
    rope_theta: float | None = None
    """Another base of the rotary angles than the model's."""
    rope_scale: float | None = None
    """Make the base so much larger that texts may be so many times as long (NTK-aware scaling)."""
    dims: int | None = None
    """Measure the first so many dimensions, of length one again (Matryoshka)."""
    quantize: Literal["int8", "binary"] | None = None
    """Measure vectors as `python -m e5jax.encode --quantize` stores them; binary ones are compared by their signs."""
    passkey_lengths: tuple[int, ...] = (256, 512, 1024, 2048, 4096, 8192, 16_384, 32_768)
    """Tokens of the documents of the passkey task."""
    paper: dict[str, float] = dataclasses.field(default_factory=dict)
    """{task: score in percent} as published, shown beside what was measured."""
    compare: tuple[str, str] | None = None
    """Two results folders of earlier evaluations: differences of their scores with paired bootstrap intervals."""

    def __post_init__(self):
        wanted = self.compare is not None or (len(self.model) > 0 and len(self.tasks) > 0)
        _require(wanted, "give --model and --tasks, or --compare A B")
        _require(self.window is None or self.window >= 0, f"window must not be negative, got {self.window}")
        _require(self.rope_theta is None or self.rope_theta > 0, f"rope_theta must be positive, got {self.rope_theta}")
        _require(self.rope_scale is None or self.rope_scale > 0, f"rope_scale must be positive, got {self.rope_scale}")
        _require(self.dims is None or self.dims > 0, f"dims must be positive, got {self.dims}")
        _require(self.max_length is None or self.max_length >= 8, f"max_length {self.max_length} is less than 8")
        fit = all(64 <= length <= 32_768 for length in self.passkey_lengths)
        _require(fit, f"passkey_lengths are of 64 to 32768 tokens, got {self.passkey_lengths}")


@frozen
class ExportConfig:
    """A trained model -> a folder for transformers, PEFT, sentence-transformers, TEI and vLLM."""

    checkpoint: str
    """A workdir or one of its checkpoints; or any other model that `Encoder.load` takes."""
    output: str
    """A new folder."""
    form: Literal["merged", "adapter"] = "merged"
    """merged: a whole model; adapter: PEFT's files, beside the base they name."""
    dtype: Literal["float32", "bfloat16", "float16"] | None = None
    """Dtype of the merged weights; None: as trained."""
    results: str | None = None
    """A results.json of `python -m e5jax.evaluate` for the model card."""
    license: str | None = None
    """Licence for the model card, as the hub spells it (apache-2.0)."""
    push_to_hub: str | None = None
    """Also upload to this repository (OWNER/NAME); the token comes from HF_TOKEN."""


@frozen
class MergeConfig:
    """Runs of one model -> one run."""

    runs: tuple[str, ...]
    """Workdirs, or steps of theirs (D/checkpoints/300): of one base, tokenizer and kind of training."""
    output: str
    """A new folder."""
    weights: tuple[float, ...] = ()
    """Of each run, relative to their sum; none: all alike."""
    method: Literal["linear", "slerp"] = "linear"
    """linear: the weighted sum; slerp: of two, the point on the arc between them, which keeps the length."""
    rank: int | None = None
    """Of the merged adapters: the closest of that rank. None: the sum of the runs' ranks, without loss."""

    def __post_init__(self):
        wrong = {
            "runs: name two or more": len(self.runs) < 2,
            f"weights: give one for each of the {len(self.runs)} runs": len(self.weights) not in (0, len(self.runs)),
            f"weights must be positive, got {self.weights}": not all(0 < weight < math.inf for weight in self.weights),
            "slerp is between two runs": self.method == "slerp" and len(self.runs) != 2,
            f"rank must be positive, got {self.rank}": self.rank is not None and self.rank < 1,
        }
        for message in (message for message, is_so in wrong.items() if is_so):
            raise ValueError(message)


@frozen
class ExperimentsConfig:
    """A table of the paper -> the same table, measured here."""

    table: str
    """1, 2, 4, 5, 7, 17, or figure_5; or the path of a table file of your own."""
    scale: Literal["paper", "small"] = "paper"
    """small: minutes a row on a CPU, on $E5JAX_DATA."""
    seeds: tuple[int, ...] = (0, 1, 2)
    rows: tuple[str, ...] = ()
    """Only these rows, by name; empty: all."""
    output: str | None = None
    """A folder; None: runs/experiments/table_5-small."""
    folder: str = "configs/paper"
    """Where the tables are."""

    def __post_init__(self):
        if not self.seeds or len({*self.seeds}) < len(self.seeds) or min(self.seeds) < 0:
            raise ValueError(f"seeds must be different numbers from 0, got {self.seeds}")


def profile_range(steps: str) -> tuple[int, int]:
    """`A:B` -> (A, B)."""
    first, _, last = steps.partition(":")
    _require(
        first.isdigit() and last.isdigit() and 1 <= int(first) <= int(last),
        f"profile_steps is A:B with 1 <= A <= B, got {steps!r}",
    )
    return int(first), int(last)
