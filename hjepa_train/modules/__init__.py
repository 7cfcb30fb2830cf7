"""Parts that networks and objectives share: layers, momentum copies, masks, anti-collapse terms, learning signals.

Whole encoders: `backbones`, next.
"""
