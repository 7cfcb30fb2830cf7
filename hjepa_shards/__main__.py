"""`python -m hjepa_shards`: the same commands as hjepa-shards."""

from hjepa_shards.cli import main

main()
