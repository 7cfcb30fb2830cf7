"""From positions to batches of pixels: stores of shards (local, remote), reading ahead, decoding in threads.

A new kind of location of shards is a store: `shard_store.py` has the contract and the local one, `remote_store.py` the
one for URLs and `store_at`, which chooses. Order: `mixture`; crops: `images/crop.py`. Images that occur twice:
`duplicates`, next.
"""
