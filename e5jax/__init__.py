"""LLM text embedders in JAX.

Names are loaded when they are first used (PEP 562), so `import e5jax` alone brings in no JAX.
"""

import importlib
import warnings


# gcsfs brings Google's libraries, which announce in every process when they will leave a Python behind.
warnings.filterwarnings("ignore", "You are using a Python version", FutureWarning, "google")

__version__ = "0.1.0"

_HOME = {
    "Encoder": "e5jax.encoder",
    "TrainConfig": "e5jax.config",
    "UserError": "e5jax.errors",
    "top_k": "e5jax.search",
}
__all__ = [*_HOME, "__version__"]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'e5jax' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(importlib.import_module(_HOME[name]), name)
