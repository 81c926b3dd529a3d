"""Synthetic worlds and their truth."""
