"""Fits what scores mean, and stores it in a model folder."""
