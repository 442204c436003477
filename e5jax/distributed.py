"""Several processes, one run: JAX's multi-controller runtime, and the little that they have to agree on.

Every process runs the same command. Process 0 alone writes what people read; each reads only the texts of its devices.
"""

import contextlib
import json
import logging
import os
import sys
from collections.abc import Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils

from e5jax.config import DistributedConfig
from e5jax.errors import UserError
from e5jax.watchdog import within


log = logging.getLogger(__name__)

LIMIT_S = 3600.0
"""For a wait outside the steps: one process may have to compile, or to read all checkpoints."""
SIZES = {  # what a launcher says of the number of processes
    "SLURM_STEP_NUM_TASKS": int,
    "OMPI_COMM_WORLD_SIZE": int,
    "TPU_WORKER_HOSTNAMES": lambda names: len(names.split(",")),
}


def start(config: DistributedConfig) -> None:
    """Join the other processes, where there are any; before anything else asks JAX for devices.

    They are those that the config names, or those of the launcher in the environment (a TPU pod on GKE, Slurm, Open
    MPI); E5JAX_DISTRIBUTED=1 makes JAX look for itself, as on Cloud TPU VMs. Raises UserError where that is half said.
    """
    named = {
        "coordinator_address": config.coordinator,
        "num_processes": config.processes,
        "process_id": config.process,
    }
    given = {name: value for name, value in named.items() if value is not None}
    if jax.distributed.is_initialized() or not (given or launched(os.environ)):
        return
    if len(given) not in (0, len(named)):
        raise UserError("distributed.coordinator, processes and process go together: give all three, or none")
    try:
        # One that fails leaves by itself: JAX would have it wait five minutes for the others, who wait for it.
        limit = config.heartbeat_s
        jax.distributed.initialize(**given, heartbeat_timeout_seconds=limit, shutdown_timeout_seconds=limit)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"the processes did not find each other: {error}") from error
    if not is_first():
        logging.getLogger("e5jax").setLevel(logging.ERROR)
    # On CPUs the first collective has to begin in all within 30 s; later ones may wait.
    agreed("here", "the other processes' start")


def launched(environment: Mapping[str, str]) -> bool:
    """Whether a launcher has started several processes."""
    asked = environment.get("E5JAX_DISTRIBUTED") == "1"
    return asked or any(size(environment[name]) > 1 for name, size in SIZES.items() if name in environment)


def is_first() -> bool:
    """Whether this process writes for all."""
    return jax.process_index() == 0


def several() -> bool:
    """Whether there are others."""
    return jax.process_count() > 1


def agreed(value, what: str):
    """A JSON value of process 0, in every process; which all get here is part of the agreement.

    `what` is waited for; where it takes longer than LIMIT_S the process ends and says so.
    """
    if not several():
        return value
    with within(LIMIT_S, what):
        said = np.frombuffer(json.dumps(value).encode() if is_first() else b"", np.uint8)
        length = int(multihost_utils.broadcast_one_to_all(np.int32(len(said))))
        said = np.resize(said, length) if is_first() else np.zeros(length, np.uint8)
        said = multihost_utils.broadcast_one_to_all(said)
    return json.loads(np.asarray(said, np.uint8).tobytes())


def fetched(tree):
    """Arrays of any layout as NumPy arrays, whole, in every process."""
    return multihost_utils.process_allgather(tree, tiled=True) if several() else jax.device_get(tree)


def preempted(step: int) -> bool:
    """Whether any of the processes was told to end, and this is the step at which all do.

    JAX owns SIGTERM as soon as it is initialised: a handler of ours would keep it from hearing the signal.
    """
    return multihost_utils.reached_preemption_sync_point(step)


@contextlib.contextmanager
def first_speaks():
    """Standard output is process 0's alone."""
    if is_first():
        yield
        return
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield
    sys.stdout.flush()
