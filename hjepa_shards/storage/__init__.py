"""Bytes in other places: remote files, downloads, archives, the cache of remote shards, a build's folder or bucket.

Nothing here knows what the bytes mean. Images: `images`; what a loader does with remote shards:
`loader/remote_store.py`.
"""
