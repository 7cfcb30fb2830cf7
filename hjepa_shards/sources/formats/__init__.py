"""File formats of raw data, each read by several sources: class folders, tars, pickles, .mat files, caption lists.

Which dataset uses which: `published` and `own`, next.
"""
