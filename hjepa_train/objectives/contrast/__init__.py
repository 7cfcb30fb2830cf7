"""Images distinguished from each other: SimCLR."""
