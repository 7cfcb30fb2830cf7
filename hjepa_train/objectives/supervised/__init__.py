"""Families that learn from labels: a class for each image."""
