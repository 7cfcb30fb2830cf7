"""The user's own images: folders, lists with captions, third-party tars; and the bundled images of scikit-learn.

They get their names in `registry.py`.
"""
