"""The data half of the paper: an LLM writes the training set (Wang et al. 2024, arXiv 2401.00368, section 3.1).

task types and languages → requests → client → ledger (paid once) → filters → a TFDS dataset. Nothing here imports JAX.
"""
