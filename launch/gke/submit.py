#!/usr/bin/env python3
"""Train on a TPU slice of a GKE cluster: fill in jobset.yaml, submit it, and follow it to its end.

    python launch/gke/submit.py --name e5-mistral --image REGISTRY/e5jax-tpu --accelerator tpu-v5-lite-podslice \\
        --topology 16x16 [--spot] [--namespace N] [--context C] [--service-account S] [--restarts 100] [--dry-run] \\
        -- --config configs/e5_mistral_7b.py --workdir gs://BUCKET/runs/e5-mistral

What stands behind `--` goes to `python -m e5jax.train`, on every host. A slice that is taken away, or a host that dies,
restarts all, and the run goes on from its newest checkpoint; status 2 (a wrong config) ends it at once. --dry-run only
prints the JobSet. Exits with 0 when it is completed, with 1 when it failed.
"""

import argparse
import math
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import yaml


CHIPS_A_HOST = 4  # of slices with several hosts, v4 to v6e
PATIENCE = 20  # failed calls of kubectl in a row
SPOT = "cloud.google.com/gke-spot"


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", required=True, help="of the JobSet")
    parser.add_argument("--image", required=True, help="built from launch/Dockerfile.tpu")
    parser.add_argument("--accelerator", required=True, help="GKE's name, such as tpu-v5-lite-podslice, tpu-v5p-slice")
    parser.add_argument("--topology", required=True, type=topology, help="chips, such as 16x16 or 8x8x8")
    parser.add_argument("--spot", action="store_true", help="on spot nodes")
    parser.add_argument("--namespace", default="default")
    parser.add_argument("--context", help="of kubectl: which cluster")
    parser.add_argument("--service-account", help="of the pods; one that may write to the bucket")
    parser.add_argument("--restarts", type=int, default=100)
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("command", nargs="+", metavar="ARGUMENT", help="what e5jax.train is given, behind --")
    words = parser.parse_args(argv)

    template = yaml.safe_load(Path(__file__).with_name("jobset.yaml").read_text(encoding="utf-8"))
    manifest = yaml.safe_dump(filled(template, words), sort_keys=False)
    print(manifest, flush=True)
    if words.dry_run:
        return 0
    kubectl = ["kubectl", *(["--context", words.context] if words.context else []), "--namespace", words.namespace]
    if subprocess.run([*kubectl, "apply", "-f", "-"], input=manifest, text=True, check=False).returncode:
        return 1  # kubectl has said why
    return follow(kubectl, words.name, float(os.environ.get("POLL_SECONDS", "30")))


def topology(text: str) -> str:
    """16x16 or 8x8x8."""
    if not all(part.isdigit() and int(part) for part in text.split("x")):
        raise argparse.ArgumentTypeError(f"{text!r} is no topology: write 16x16 or 8x8x8")
    return text


def filled(jobset: dict, words: argparse.Namespace) -> dict:
    """The JobSet of these arguments."""
    jobset["metadata"]["name"] = words.name
    jobset["spec"]["failurePolicy"]["maxRestarts"] = words.restarts
    job = jobset["spec"]["replicatedJobs"][0]["template"]["spec"]
    chips = math.prod(map(int, words.topology.split("x")))
    job["parallelism"] = job["completions"] = -(-chips // CHIPS_A_HOST)
    pod = job["template"]["spec"]
    pod["nodeSelector"] = {
        "cloud.google.com/gke-tpu-accelerator": words.accelerator,
        "cloud.google.com/gke-tpu-topology": words.topology,
        **({SPOT: "true"} if words.spot else {}),
    }
    if words.spot:  # nodes that may go are kept from pods that do not say so
        pod["tolerations"] = [{"key": SPOT, "operator": "Equal", "value": "true", "effect": "NoSchedule"}]
    if words.service_account:
        pod["serviceAccountName"] = words.service_account
    container = pod["containers"][0]
    container["image"], container["args"] = words.image, words.command
    container["resources"]["limits"]["google.com/tpu"] = min(chips, CHIPS_A_HOST)
    return jobset


def follow(kubectl: list[str], name: str, poll_s: float) -> int:
    """Say when its state changes, until it has ended -> the exit status."""
    line = [*kubectl, "get", "jobset", name, "-o", "jsonpath={.status.terminalState} {.status.restarts}"]
    said, unheard = None, 0
    while unheard < PATIENCE:
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        unheard = unheard + 1 if done.returncode else 0
        now = done.stderr.strip() if done.returncode else done.stdout.strip() or "under way"
        if now != said:
            print(f"{time.strftime('%FT%TZ', time.gmtime())} {name}: {now}", flush=True)
            said = now
        if not done.returncode and now.startswith(("Completed", "Failed")):
            return int(now.startswith("Failed"))
        time.sleep(poll_s)
    print(f"{name} cannot be asked about any more; it may still be there", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
