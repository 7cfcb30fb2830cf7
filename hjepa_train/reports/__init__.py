"""What people read about a run: its log and progress bar, tables, charts, pictures, report pages, runs side by side.

Curves are drawn by hjepa_shards/reports/svg_curves.py. The loop that is reported on: `training`, next.
"""
