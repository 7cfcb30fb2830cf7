"""The commands of hjepa-shards, a file for each kind; `cli.py` gives them their names."""
