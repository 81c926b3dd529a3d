"""What to look at while a run trains: one list of panels, shown by W&B and by a page of this machine's own."""
