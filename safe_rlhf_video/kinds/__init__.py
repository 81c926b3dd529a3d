"""Kinds of label heads: from what records say of a video to numbers, and from scores to probabilities."""
