"""What each command does, a file each: run, dry run, eval, bench, export. The only folder where all parts meet.

The commands' options are in `cli.py`; their errors are printed by hjepa_shards/base/terminal.py.
"""
