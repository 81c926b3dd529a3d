"""Draws synthetic worlds whose preferences are known exactly, and reads their hidden truth."""
