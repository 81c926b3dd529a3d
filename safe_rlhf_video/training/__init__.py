"""One training loop on a DeepSpeed engine."""
