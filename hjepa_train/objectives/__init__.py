"""What is learnt: a batch to a loss and numbers, a family a file.

`base.py` is the contract, `registry.py` names them all; `joint` predicts features, `masked` pixels, `contrast` tells
images apart. Batches come from `data`, next.
"""
