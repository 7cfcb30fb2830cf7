"""A run's memory on disk: files that are whole or not there, written in the background, also by many ranks.

`checkpoint_files.py` writes and reads one, `sharded_files.py` the parts of many ranks; `background_saver.py` calls them
in a thread. When to save is the loop's: `training/trainer.py`. How good features are: `evaluation`, next.
"""
