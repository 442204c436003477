"""Several processes on this machine, each with simulated CPU devices: a stand-in for a pod.

    python launch/local.py --processes 2 --devices 4 -- -m e5jax.train --config configs/quickstart.py

What stands behind `--` is what `python` runs, in every process; each is told who it is. Lines are marked with the
process they come from. SIGTERM and Ctrl-C go to all. Once one fails, the others have --grace seconds to end by
themselves. Exits with the status of the first that failed, else 0.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import threading
import time


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--devices", type=int, default=1, help="of each process")
    parser.add_argument("--grace", type=float, default=60.0, help="seconds for the others once one has failed")
    parser.add_argument("--dry-run", action="store_true", help="only print what would run")
    parser.add_argument("command", nargs="+", metavar="ARGUMENT", help="what python runs, behind --")
    words = parser.parse_args()
    coordinator = f"127.0.0.1:{free_port()}"
    lines = [
        [sys.executable, *words.command, *f"--distributed.coordinator {coordinator}".split()]
        + f"--distributed.processes {words.processes} --distributed.process {process}".split()
        for process in range(words.processes)
    ]
    if words.dry_run:
        print("\n".join(" ".join(line) for line in lines))
        return 0
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={words.devices}".strip()
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONUNBUFFERED": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "errors": "replace"}
    started = [subprocess.Popen(line, env=environment, **pipes) for line in lines]
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: [process.send_signal(number) for process in started])
    readers = [threading.Thread(target=echo, args=named, daemon=True) for named in enumerate(started)]
    for reader in readers:
        reader.start()
    status = wait(started, words.grace)
    for reader in readers:
        reader.join(5)
    return status


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def echo(number: int, process: subprocess.Popen) -> None:
    """Its lines, with its number in front."""
    for line in process.stdout:
        print(f"[{number}] {line}", end="", flush=True)


def wait(processes: list[subprocess.Popen], grace: float) -> int:
    """Until all have ended -> the status of the first that failed; after `grace` seconds more the others are killed."""
    failed, since = 0, None
    while any(process.poll() is None for process in processes):
        if since is None and (statuses := [process.returncode for process in processes if process.poll()]):
            failed, since = statuses[0], time.monotonic()
        if since is not None and time.monotonic() - since > grace:
            for process in processes:
                process.kill()
        time.sleep(0.05)
    statuses = [process.returncode for process in processes if process.returncode]
    status = failed or (statuses[0] if statuses else 0)
    return 128 - status if status < 0 else status


if __name__ == "__main__":
    sys.exit(main())
