"""From a video file to sampled, resized frames."""
