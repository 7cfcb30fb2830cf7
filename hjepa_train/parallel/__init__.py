"""A model over devices and memory: sharding, recomputation, compilation, memory estimates, lost ranks.

How ranks meet and add: `base/distributed.py`. What is saved: `checkpoints`, next.
"""
