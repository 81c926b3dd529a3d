"""What each script does: its arguments, one call, its output."""
