"""From positions to batches of pixels: stores of shards (local, remote), reading ahead, decoding in threads.

A new place where shards can lie is a store: `shard_store.py` says what one offers. Order: `mixture`; crops:
`images/crop.py`.
"""
