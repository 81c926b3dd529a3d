"""What a trained model is worth: accuracy with intervals, the label ceiling, controls."""
