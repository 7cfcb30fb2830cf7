"""The user's own images: folders, lists with captions, tars written by others; and the bundled images of scikit-learn.

They get their names in `registry.py`.
"""
