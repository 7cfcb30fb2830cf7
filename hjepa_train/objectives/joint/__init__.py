"""Joint-embedding prediction: H-JEPA and its predictor."""
