"""What people read about a run: its log and progress bar, tables, charts, pictures, report pages, runs side by side.

`run_report.py` has a run's tables, `run_page.py` the HTML page around them, `metric_charts.py` which curves it shows;
each curve is drawn by hjepa_shards/reports/svg_curves.py. `run_log.py` is what a run says while it trains. The loop:
`training`, next.
"""
