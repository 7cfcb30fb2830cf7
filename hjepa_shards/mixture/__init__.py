"""Which sample is at which position: the order of a run, as arithmetic on integers. No shard is opened here.

`sample_order.py` decides a batch's order, `permutation.py` the order inside a source, `source_counts.py` whose turn it
is, `resume_state.py` what a resume accepts. Reading those samples: `loader`, next.
"""
