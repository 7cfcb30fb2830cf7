"""From raw data to shards: the list of samples, the plan of a build, its tasks, and the split that they leave.

`build.py` is the way through; `index_tars.py` makes tars of others readable. The format itself: `shards`. Checks of
what was built: `verifying`, next.
"""
