"""What every other folder uses: whole files, threads, keyed random numbers, text for people, this machine's limits.

Nothing here knows an image or a shard. Bytes from other machines and archives: `storage`.
"""
