"""The commands of hjepa-shards, a file for each kind; `cli.py` gives them their names.

A command is a signature, one call of a public function, and a table of what it returned. What it runs is imported in
its body: `--help`, completion and a mistyped option load no NumPy. Errors are printed by `base/terminal.py`.
"""
