"""Masked images, painted again: MAE."""
