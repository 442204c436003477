"""A table of experiments: its rows, what each is trained and measured with, and what the paper says of it."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

from e5jax.config import TrainConfig
from e5jax.errors import UserError


frozen = dataclasses.dataclass(frozen=True, kw_only=True)


@frozen
class Row:
    """One row of a table: a model, how it comes about, how it is measured."""

    name: str
    train: TrainConfig | None = None
    """The run; its workdir and seed are set here. None: `model` as it is."""
    model: str | None = None
    """A model that is measured untrained: what `evaluate --model` takes."""
    first: TrainConfig | None = None
    """A stage before `train`, which starts from its result."""
    trained_as: str | None = None
    """The name of another row whose model this one measures, in another way."""
    measured: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Fields of `EvaluateConfig` for this row alone: prompts, window, rope_theta ..."""
    against: str | None = None
    """The row that its differences are taken to."""
    paper: Mapping[str, float] = dataclasses.field(default_factory=dict)
    """{column: what the paper has}, in its unit."""
    unanswered: str = ""
    """Why this scale cannot answer it; such a row is reported and not run."""

    def __post_init__(self):
        ways = sum(x is not None for x in (self.train, self.model, self.trained_as))
        if not self.unanswered and ways != 1:
            raise UserError(f"row {self.name!r}: give it one of train, model, trained_as, or say why it is unanswered")


@frozen
class Table:
    """Rows, and the tasks of each column."""

    title: str
    about: str
    """What the paper found, and how this scale asks for it."""
    rows: tuple[Row, ...]
    columns: Mapping[str, tuple[str, ...]]
    """{column: its tasks}; a score is the mean of a column's tasks. TASK/SUBSET is one language of a task,
    eval/NAME/METRIC a held-out set of the training run itself."""
    average: Literal["columns", "tasks"] | None = "columns"
    """The mean over columns, or over all tasks as the paper has it; None: none."""
    data_dir: str | None = None
    """The local tasks' folder; None: $E5JAX_DATA."""
    prepare: Callable[[], object] | None = None
    """Makes what the rows read, where it is not there yet."""

    def __post_init__(self):
        names = [row.name for row in self.rows]
        for row in self.rows:
            for other in filter(None, (row.against, row.trained_as)):
                if other not in names or other == row.name:
                    raise UserError(f"row {row.name!r}: no other row {other!r}; there are {', '.join(names)}")
        if len({*names}) < len(names):
            raise UserError(f"two rows of one name: {', '.join(names)}")
