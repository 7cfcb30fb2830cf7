"""The training loop and what it needs: the configuration, the optimizer, gradients that are not finite, full memory.

`trainer.py` is the loop. It is put together for a run in `jobs/run.py`, next.
"""
