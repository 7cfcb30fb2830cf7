"""What the rest uses: devices, ranks, keyed integers, schedules, metrics.jsonl, signals that stop a run.

Nothing here knows a network. Their parts: `modules`, next.
"""
