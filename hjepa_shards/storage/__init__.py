"""Bytes elsewhere: remote files, downloads, archives, the cache of remote shards, a build's folder or bucket.

Which store of shards a loader takes for a place: `loader/remote_store.py`. Nothing here knows what the bytes mean.
Images: `images`, next.
"""
