"""Audits comparisons before training: leaks, duplicates, contradictions, label noise, and the graph they form."""
