"""Probes on frozen features: k-NN, linear, ridge, SGD, attentive; some during training (`online_probes.py`).

A new probe is a file here and a line in `jobs/evaluate.py`. `finished_probes.py` is the record by which a killed
evaluation continues. Pages with the results: `reports`, next.
"""
