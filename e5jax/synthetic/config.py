"""What `synthesize` and `package` depend on."""

import dataclasses
from typing import Literal


frozen = dataclasses.dataclass(frozen=True, kw_only=True)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@frozen
class CapsConfig:
    """What a job may cost at the most; checked before a request is sent, those under way at their worst case."""

    dollars: float | None = None
    requests: int | None = None
    tokens: int | None = None
    """Prompt and answer together."""


@frozen
class SynthesizeConfig:
    """An LLM writes training examples; every answer is paid once and kept in a ledger."""

    workdir: str
    """Gets ledger/ and report.json; one that has them is gone on with."""
    examples: int
    """How many to ask for, over all types."""
    client: Literal["gemini", "gemini-batch", "gemini-legacy", "openai", "replay"] = "gemini"
    """gemini: google-genai; gemini-batch: its Batch API at half the price, within a day; gemini-legacy:
    google-generativeai; openai: OpenAI, Azure and every compatible server; replay: answers of another ledger."""
    model: str = "gemini-2.5-flash"
    replay: str | None = None
    """Ledger folder for the client `replay`."""
    types: dict[str, float] = dataclasses.field(default_factory=dict)
    """{task type: share}; empty: the paper's (short-long, long-short, short-short, long-long, sts, bitext)."""
    languages: dict[str, float] = dataclasses.field(default_factory=dict)
    """{language: share}; empty: the paper's 93."""
    placeholders: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    """{type.placeholder: values to draw from}, such as short-long.num_words; the paper's for those not named."""
    topics: str | None = None
    """A file with a topic a line, or `builtin`: each brainstorm is about one. None: none, as in the paper."""
    tasks_per_topic: int = 1
    """Tasks kept of a brainstorm that has a topic."""
    brainstorms: int | None = None
    """Requests for lists of tasks; None: enough for one task in three examples, as in the paper."""
    grounded: str | None = None
    """A corpus (.jsonl, .txt): the LLM writes task and query for passages of it, and ranks what is retrieved."""
    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int = 2_048
    seed: int = 0
    concurrency: int = 200
    """Requests under way at the most; fewer when the server says so."""
    attempts: int = 6
    """Tries of one request before it is given up."""
    retry_given_up: bool = False
    """Ask again for what an earlier run gave up on."""
    timeout_s: float = 120.0
    caps: CapsConfig = CapsConfig()
    prices: str | None = None
    """A JSON file of prices by model; None: the built-in table."""
    key_file: str | None = None
    """A file with the API key; None: the SDK's own environment variable."""
    dry_run: bool = False
    """Print the plan and what it would cost at the most, and ask nothing."""

    def __post_init__(self):
        _require(self.examples > 0, f"examples must be positive, got {self.examples}")
        _require(self.client != "replay" or self.replay is not None, "the client replay needs --replay LEDGER")
        _require(0 <= self.temperature <= 2, f"temperature must be in [0, 2], got {self.temperature}")
        _require(0 < self.top_p <= 1, f"top_p must be in (0, 1], got {self.top_p}")
        _require(self.max_tokens > 0, f"max_tokens must be positive, got {self.max_tokens}")
        _require(self.concurrency > 0, f"concurrency must be positive, got {self.concurrency}")
        _require(self.attempts > 0, f"attempts must be positive, got {self.attempts}")
        _require(self.tasks_per_topic > 0, f"tasks_per_topic must be positive, got {self.tasks_per_topic}")


@frozen
class PackageConfig:
    """A ledger -> filters -> the TFDS dataset `synthetic_text_embeddings`."""

    workdir: str
    """The workdir of `synthesize`, with its ledger/."""
    output: str | None = None
    """Data folder of TFDS; None: WORKDIR/dataset."""
    name: str = "all"
    """Builder config: all, english, or one task type."""
    heldout: float = 0.02
    """Share of the tasks whose examples go to the held-out split."""
    near_duplicates: float = 0.8
    """Jaccard similarity of word sets from which two examples count as one; 1: exact ones only."""
    check_language: bool = True
    """Reject what is not written in the language that was asked for."""
    max_characters: int = 20_000
    """Of a query or passage."""
    decontaminate: tuple[str, ...] = ()
    """Files with texts of evaluation sets (.jsonl, .txt, .csv): examples that share one are rejected."""
    prompt_versions: tuple[str, ...] = ()
    """Of the answers to use; empty: the present one. Answers to other versions are kept in the ledger."""
    tokenizer: str | None = None
    """A tokenizer.json to count lengths with in the statistics; None: words are counted."""
    beam_runner: str | None = None
    """Run the filters as a Beam pipeline: DirectRunner, DataflowRunner, FlinkRunner."""

    def __post_init__(self):
        _require(0 <= self.heldout < 1, f"heldout must be in [0, 1), got {self.heldout}")
        _require(0 < self.near_duplicates <= 1, f"near_duplicates must be in (0, 1], got {self.near_duplicates}")
        _require(self.max_characters > 0, f"max_characters must be positive, got {self.max_characters}")
