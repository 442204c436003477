#!/usr/bin/env bash
# The whole recipe, each step once: an LLM's answers and public data -> mined negatives -> two stages of training -> a
# merged model -> measured -> served by sentence-transformers.
#
#     examples/rehearsal.sh DOWNLOADS OUTPUT
#
# DOWNLOADS has nq/, nli/ and quora/ as docs/public_sets.md says. The answers are the built-in sample's, the base is a
# tiny decoder trained first: replace both (synthesize's --client, BASE below) and it is the real thing. It may be
# stopped anywhere and run again: every step goes on where it was. PYTHON, STEPS and BASE may be set.
set -euo pipefail
cd "$(dirname "$0")/.."
downloads=$1 output=$2
python=${PYTHON:-python}
steps=${STEPS:-40}
export OUTPUT=$output
run() { echo "+ python -m $*"; "$python" -m "$@"; }

# Data: the ledger's answers are paid for already; of the public sets the paper's instructions and negatives.
run e5jax.synthesize --config configs/synthesize_sample.py --workdir "$output/sample"
run e5jax.package --config configs/package_sample.py --workdir "$output/sample"
run e5jax.public --input "$downloads" --output "$output/public" --sets nq nli quora
run e5jax.contamination --train "$output/public/nli.jsonl" "$output/public/quora.jsonl" \
  --evaluation "$output/public/nq.jsonl" \
  --output "$output/contamination.json"

# A base, where none is named.
if [ -z "${BASE:-}" ]; then
  export BASE=$output/base
  run e5jax.train --config examples/rehearsal.py --workdir "$BASE" --steps "$steps"
fi

# Hard negatives for what came with none.
run e5jax.mine --model "$BASE" --input "$output/public/quora.jsonl" --negatives 2 --output "$output/mined"

# Two stages: retrieval with in-batch negatives, then everything, classes told from their own negatives alone.
STAGE=1 run e5jax.train --config examples/rehearsal.py --workdir "$output/stage1" --steps "$steps"
STAGE=2 run e5jax.train --config examples/rehearsal.py --workdir "$output/stage2" --steps "$steps" \
  --init-from "$output/stage1"
[ -d "$output/merged" ] || run e5jax.merge --runs "$output/stage1" "$output/stage2" --method slerp --output "$output/merged"

# How good is it, and beside whom?
STAGE=tasks "$python" examples/rehearsal.py
run e5jax.evaluate --model "$output/merged" "$BASE" bm25 --tasks unseen --data-dir "$output/tasks" \
  --output "$output/results"
[ -d "$output/exported" ] || run e5jax.export --checkpoint "$output/merged" --output "$output/exported"
"$python" - "$output/exported" <<'PYTHON'
import sys

from sentence_transformers import SentenceTransformer

model = SentenceTransformer(sys.argv[1])
vectors = model.encode(["why does bread rise", "Yeast turns sugar into gas."], normalize_embeddings=True)
print(f"served by sentence-transformers: cosine {vectors[0] @ vectors[1]:.3f}")
PYTHON
