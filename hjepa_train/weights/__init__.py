"""Weights that come in from files of others: read without running anything, renamed, fitted to a backbone.

`torch_files.py` reads PyTorch's format, `weight_files.py` any file, `foreign_layouts.py` knows the names that published
models use, `position_tables.py` converts positions, `fitting.py` says what fits. Runs as a source: `jobs`.
"""
