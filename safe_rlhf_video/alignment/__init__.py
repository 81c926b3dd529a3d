"""Makes generators better: what they learn from rewards and costs of their own clips, under a limit."""
