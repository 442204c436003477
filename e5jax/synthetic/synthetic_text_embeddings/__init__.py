"""The TFDS dataset `synthetic_text_embeddings`: importing it registers it."""

from e5jax.synthetic.synthetic_text_embeddings.synthetic_text_embeddings_dataset_builder import Builder


__all__ = ["Builder"]
