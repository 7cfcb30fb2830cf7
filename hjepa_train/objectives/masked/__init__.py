"""Masked images, reconstructed: MAE."""
