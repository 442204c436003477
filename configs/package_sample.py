"""The built-in sample as a dataset; see synthesize_sample.py. A fifth of its tasks are held out."""

from e5jax.synthetic.config import PackageConfig


def get_config() -> PackageConfig:
    return PackageConfig(workdir="runs/sample", heldout=0.2)
