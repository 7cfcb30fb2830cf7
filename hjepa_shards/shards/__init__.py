"""The format on disk, and nothing else: tar, sidecar index, manifest, keys, and where a split is found.

`manifest.py` reads and checks a manifest. Who writes shards: `building`; who reads them in training: `loader`; which
raw data they are made of: `sources`, next.
"""
