"""`torchrun --nproc-per-node 8 -m hjepa_train run mix.yaml`: the same commands as hjepa-train."""

from hjepa_train.cli import main

main()
