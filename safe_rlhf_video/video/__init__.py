"""Turns video files into sampled, resized frames, and stores them."""
