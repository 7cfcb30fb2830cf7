"""Encoders: images to patches, patches to features, a file each.

`base.py` is the contract, `registry.py` names them all. What is learnt with them: `objectives`, next.
"""
