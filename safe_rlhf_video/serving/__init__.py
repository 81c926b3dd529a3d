"""The reward server: scores clips over HTTP, for trainers, other programs and people without the model."""
