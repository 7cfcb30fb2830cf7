"""Images told apart from each other: SimCLR."""
