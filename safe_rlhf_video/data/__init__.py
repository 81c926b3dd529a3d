"""From SafeSora-format files to batches of distinct videos and comparisons; knows no model."""
