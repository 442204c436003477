"""Hard negatives: records → a pool of passages → candidates of each query → those that are negatives."""
