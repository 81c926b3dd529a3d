"""Reads data sets that others publish."""
