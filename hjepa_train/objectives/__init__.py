"""What is learnt: a batch to a loss and numbers, a family a file.

`base.py` is the contract, `registry.py` names them all. A new objective is a file in `joint` (predicts features),
`masked` (predicts pixels) or `contrast` (distinguishes images), or in a folder beside them, and a line in the registry.
Batches come from `data`, next.
"""
