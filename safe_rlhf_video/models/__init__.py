"""From prompts and videos to scores; never imports data."""
