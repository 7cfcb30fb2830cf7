"""From the loader's bytes to tensors: augmentation, micro-batches, labelled images, a dataset for other loops.

Where a crop is drawn: hjepa_shards/images/crop.py. How a model is laid over devices: `parallel`, next.
"""
