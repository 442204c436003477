"""Checkpoints of what is trained: parameters, optimiser, step. Orbax writes them, a manifest says that they are whole.

    python -m e5jax.checkpoint verify runs/mine
    python -m e5jax.checkpoint list runs/mine

A step's directory holds `params` (adapters, or every weight when all are trained), `opt_state` and, written last,
MANIFEST.json (`e5jax/manifest.py`). A step counts only while it agrees with its manifest. The workdir's config.json
says what the steps belong to.
"""

import argparse
import concurrent.futures
import contextlib
import json
import logging
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

import jax
import orbax.checkpoint as ocp
from flax import nnx

import e5jax
from e5jax import command, distributed, files, manifest, places, tensors
from e5jax.errors import FailedError, UserError


log = logging.getLogger(__name__)

KEPT = 2
"""Whole steps that stay; an older one goes once a newer one was read back and found whole."""


class Checkpoints:
    """The checkpoints of one workdir, for the run that writes them.

    A numbered directory that is not a whole step is set aside under another name, never deleted.
    """

    def __init__(self, workdir: Path, facts: Mapping):
        """`facts`: what the steps belong to, JSON values, for their manifests."""
        self._folder = _absolute(workdir / "checkpoints")
        self._facts = dict(facts)
        # Process 0 looks after the folder, and says what is in it.
        self._whole = distributed.agreed(
            self._tidied(workdir) if distributed.is_first() else None, "process 0's look at the checkpoints"
        )
        # Orbax deletes by number, whole or not, so it may not delete.
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(max_to_keep=None, step_prefix=None),
            item_names=("params", "opt_state"),
        )
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
        self._sealing: tuple[int, concurrent.futures.Future] | None = None

    def _tidied(self, workdir):
        for left in self._folder.glob(f"{files.DELETED}*"):  # a run was killed while it deleted
            shutil.rmtree(left, ignore_errors=True)
        whole = []
        for step in saved_steps(workdir):
            if found := manifest.problems(self._folder / str(step)):
                aside = files.partial(self._folder / f"set-aside-{step}")
                aside = aside.with_name(aside.name.removeprefix("."))
                (self._folder / str(step)).rename(aside)
                log.warning("step %d is not used: %s. It was set aside as %s", step, _few(found), aside)
            else:
                whole.append(step)
        return whole

    def latest(self) -> int | None:
        """The newest whole step."""
        return self._whole[-1] if self._whole else None

    def save(self, step: int, params: nnx.State, opt_state) -> None:
        """Copy to host memory now, write in the background. Raises what went wrong with the save before."""
        self.wait()
        params = nnx.to_pure_dict(params)
        facts = {"step": step, "tree": tree_of(params, opt_state), "versions": _versions(), **self._facts}
        try:
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.StandardSave(params), opt_state=ocp.args.StandardSave(opt_state)
                ),
                force=True,
            )
        except OSError as error:
            raise self._failed(step, error) from error
        self._sealing = step, self._thread.submit(self._seal, step, facts)

    def _seal(self, step, facts):
        self._manager.wait_until_finished()
        folder = self._folder / str(step)
        if distributed.is_first():
            manifest.write(folder, facts)
            if found := manifest.problems(folder):
                raise OSError(f"read back, {_few(found)}")
        self._whole.append(step)
        while len(self._whole) > KEPT:
            old = self._folder / str(self._whole.pop(0))
            if distributed.is_first():
                files.remove_tree(old)

    def restore(self, step: int, params: nnx.State, opt_state):
        """-> (params, opt_state) of a step; the arguments are abstract: shapes, dtypes, layouts.

        Raises UserError where the step holds others: Orbax would convert dtypes in silence.
        """
        plain = nnx.to_pure_dict(params)
        there, here = manifest.read(self._folder / str(step))["tree"], tree_of(plain, opt_state)
        if there != here:
            name = min(key for key in there.keys() | here.keys() if there.get(key) != here.get(key))
            raise UserError(
                f"{self._folder / str(step)}: {name} is {there.get(name, 'absent')} there and "
                f"{here.get(name, 'absent')} in this model"
            )
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(plain), opt_state=ocp.args.StandardRestore(opt_state)
            ),
        )
        nnx.replace_by_pure_dict(params, restored["params"])
        return params, restored["opt_state"]

    def wait(self) -> None:
        """Until the last save is whole on disk. Raises FailedError with what went wrong in it."""
        if self._sealing is None:
            return
        step, sealing = self._sealing
        self._sealing = None
        try:
            sealing.result()
        except Exception as error:  # tensorstore says a full disk with a ValueError
            raise self._failed(step, error) from error

    def _failed(self, step, error):
        kept = f"step {self._whole[-1]} is whole" if self._whole else "no step was saved so far"
        return FailedError(f"{self._folder}: step {step} could not be saved: {error}; {kept}")

    def close(self) -> None:
        """Wait, then let go of the directory."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()
            with contextlib.suppress(Exception):  # what went wrong in a save, `wait` has said; Orbax says it once more
                self._manager.close()


def tree_of(params: dict, opt_state) -> dict[str, str]:
    """{path: "float32[8,16]"} of all leaves, arrays or abstract."""
    leaves, _ = jax.tree_util.tree_flatten_with_path({"params": params, "opt_state": opt_state})
    name = lambda path: jax.tree_util.keystr(path, simple=True, separator="/")
    return {name(path): f"{leaf.dtype}[{','.join(map(str, leaf.shape))}]" for path, leaf in leaves}


def _versions():
    return {"e5jax": e5jax.__version__, "jax": jax.__version__, "orbax-checkpoint": ocp.__version__}


def _few(found):
    return "; ".join(found[:3]) + (f"; and {len(found) - 3} more" if len(found) > 3 else "")


def read_params(step_dir: Path, abstract: dict) -> dict:
    """The parameters of one step's directory, into the layout of `abstract` (ShapeDtypeStructs with shardings)."""
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(_absolute(step_dir) / "params", abstract)


def _absolute(path):
    """As Orbax wants it; in a bucket every path is."""
    return path.resolve() if isinstance(path, Path) else path


def saved_steps(workdir: Path) -> list[int]:
    """The numbers among a workdir's checkpoints, in order, whole or not."""
    return sorted(int(p.name) for p in (workdir / "checkpoints").glob("*") if p.name.isdigit())


def ends_with(workdir: Path, step: int) -> bool:
    """Whether the newest step is this one, its parameters whole."""
    return saved_steps(workdir)[-1:] == [step] and not manifest.problems(workdir / "checkpoints" / str(step), "params")


def newest_whole(workdir: Path) -> Path | None:
    """The directory of the newest step whose parameters are whole; says which it passed over and why."""
    for step in reversed(saved_steps(workdir)):
        step_dir = workdir / "checkpoints" / str(step)
        if not (found := manifest.problems(step_dir, "params")):
            return step_dir
        log.warning("%s is not used: %s", step_dir, _few(found))
    return None


def find_step(path: Path) -> tuple[Path, Path]:
    """A workdir (its newest whole step) or one step's directory -> (workdir, step directory).

    Raises UserError where there is none, or the step named is not whole.
    """
    if path.parent.name == "checkpoints" and path.name.isdigit():
        if found := manifest.problems(path, "params"):
            raise UserError(f"{path} is not whole: {_few(found)}. Name its run, and the newest whole step is used")
        return path.parent.parent, path
    if (step_dir := newest_whole(path)) is None:
        raise UserError(f"{path} holds no checkpoint yet: train it first, or name another directory")
    return path, step_dir


def brought(name: str) -> Path:
    """Where a model is on this machine; of a step's directory in a bucket, its run comes along."""
    path = PurePosixPath(name)
    if places.is_remote(name) and path.parent.name == "checkpoints":
        return places.local(name.rsplit("/checkpoints/", 1)[0]) / "checkpoints" / path.name
    return places.local(name)


def digest(step_dir: Path) -> str:
    """sha256 over the files of a step's parameters."""
    return tensors.digest_files(sorted(path for path in (step_dir / "params").rglob("*") if path.is_file()))


def abstract(tree):
    """Shapes, dtypes and layouts of a tree of arrays, without the arrays."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def _verify(step_dir):
    found = manifest.problems(step_dir)
    return {"whole": not found, "problems": found}


def _list(step_dir):
    sizes = files.sizes(step_dir)
    return {"files": len(sizes), "bytes": sum(sizes.values())}


COMMANDS = {"verify": _verify, "list": _list}


def main(argv: Sequence[str] | None = None) -> int:
    """One JSON line a step; `verify` exits with 1 where one is not whole."""
    parser = argparse.ArgumentParser(prog="python -m e5jax.checkpoint", description="The checkpoints of a run.")
    parser.add_argument("command", choices=COMMANDS, help="verify: read every file; list: what there is")
    parser.add_argument("workdir", type=places.place, metavar="DIR", help="of a run")
    words = parser.parse_args(argv)

    def work():
        if not (steps := saved_steps(words.workdir)):
            raise UserError(f"{words.workdir} holds no checkpoint: name the workdir of a run")
        damaged = []
        for step in steps:
            said = COMMANDS[words.command](words.workdir / "checkpoints" / str(step))
            print(json.dumps({"step": step, **said}), flush=True)
            if not said.get("whole", True):
                damaged.append(step)
        if damaged:
            raise FailedError(f"not whole: {', '.join(map(str, damaged))}")

    return command.exit_code(work)


if __name__ == "__main__":
    sys.exit(main())
