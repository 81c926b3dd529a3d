"""Scores generations, and chooses among them under a safety constraint."""
