"""Checkpoints of what is trained: parameters, optimiser, step. Orbax writes them in the background.

A step's directory holds `params` (adapters, or every weight when all are trained) and `opt_state`. The workdir's
config.json says what they belong to.
"""

from pathlib import Path

import jax
import orbax.checkpoint as ocp
from flax import nnx

from e5jax import tensors
from e5jax.errors import UserError


class Checkpoints:
    """The checkpoints of one workdir; the two newest are kept."""

    def __init__(self, workdir: Path):
        self._manager = ocp.CheckpointManager(
            (Path(workdir) / "checkpoints").resolve(),
            options=ocp.CheckpointManagerOptions(max_to_keep=2, step_prefix=None),
            item_names=("params", "opt_state"),
        )

    def latest(self) -> int | None:
        """The newest step that has a whole checkpoint."""
        return self._manager.latest_step()

    def save(self, step: int, params: nnx.State, opt_state) -> None:
        """Copy to host memory now, write in the background; errors of an earlier write surface here."""
        self._manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(nnx.to_pure_dict(params)),
                opt_state=ocp.args.StandardSave(opt_state),
            ),
            force=True,
        )

    def restore(self, step: int, params: nnx.State, opt_state):
        """-> (params, opt_state) of a step; the arguments are abstract: shapes, dtypes, layouts."""
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(nnx.to_pure_dict(params)),
                opt_state=ocp.args.StandardRestore(opt_state),
            ),
        )
        nnx.replace_by_pure_dict(params, restored["params"])
        return params, restored["opt_state"]

    def wait(self) -> None:
        """Until the last write is whole on disk; raises what went wrong in it."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait, then let go of the directory."""
        self.wait()
        self._manager.close()


def read_params(step_dir: Path, abstract: dict) -> dict:
    """The parameters of one step's directory, into the layout of `abstract` (ShapeDtypeStructs with shardings)."""
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(step_dir.resolve() / "params", abstract)


def saved_steps(workdir: Path) -> list[int]:
    """The steps that a workdir holds checkpoints of, in order."""
    return sorted(int(p.name) for p in (workdir / "checkpoints").glob("*") if p.name.isdigit())


def find_step(path: Path) -> tuple[Path, Path]:
    """A workdir (its newest step) or one step's directory -> (workdir, step directory)."""
    if path.parent.name == "checkpoints" and path.name.isdigit():
        return path.parent.parent, path
    if not (steps := saved_steps(path)):
        raise UserError(f"{path} holds no checkpoint yet: train it first, or name another directory")
    return path, path / "checkpoints" / str(steps[-1])


def digest(step_dir: Path) -> str:
    """sha256 over the files of a step's parameters."""
    return tensors.digest_files(sorted(path for path in (step_dir / "params").rglob("*") if path.is_file()))


def abstract(tree):
    """Shapes, dtypes and layouts of a tree of arrays, without the arrays."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)
