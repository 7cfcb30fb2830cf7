"""A run's memory on disk: files that are whole or not there, written in the background, also by many ranks.

When to save is the loop's: `training/trainer.py`. What features are worth: `evaluation`, next.
"""
