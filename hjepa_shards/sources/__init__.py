"""Raw data that can be built into shards.

`base.py` says what a source offers, `registry.py` names them all. A new source is a file in `published` (a known
dataset) or in `own` (the user's files), a line in the registry, and what it shares with others in `formats`. Where its
files are on the internet is in `downloading/published_files.py`, if anywhere.
"""
