"""Hands a model on, with its card."""
