"""Small networks on shared cores: one thread each is faster, and equal bits need equal threads."""

import torch

torch.set_num_threads(1)
