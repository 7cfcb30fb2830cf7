"""Pages and charts for people: SVG curves and bars, the frame of every HTML page, the report about built splits.

`svg_curves.py` draws every curve, those of training too. Tables in the terminal: `commands`, next.
"""
