"""Run by a Python that has Energon, after `energon prepare`: `<key>` of every sample that its loader gives."""

import sys

from megatron.energon import WorkerConfig, get_loader, get_train_dataset

dataset = get_train_dataset(
    sys.argv[1],
    batch_size=1,
    shuffle_buffer_size=None,
    max_samples_per_sequence=None,
    worker_config=WorkerConfig(rank=0, world_size=1, num_workers=0),
    repeat=False,
)
for batch in get_loader(dataset):
    print(batch.__key__[0].rpartition("/")[2])
