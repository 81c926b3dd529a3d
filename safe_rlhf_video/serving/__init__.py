"""The reward server: scores of clips over HTTP, for trainers and people who do not load a model themselves."""
