"""The square of classes and what they are taken for."""

import re

from hjepa_train.reports.confusion_chart import confusion_chart

NAMES = ["<ant>", "bee", "cat"]


def test_a_cell_says_its_pair_and_is_as_dark_as_its_share_of_the_row() -> None:
    drawing = str(confusion_chart("digits", NAMES, [[0, 0, 3], [0, 2, 1], [2, 2, 5]]).drawing)
    cells = re.findall(r'fill-opacity="([\d.]+)"><title>(.*?)</title>', drawing)
    assert cells == [
        ("0.75", "&lt;ant&gt; as they are: 3 of 4 (75%)"),
        ("0.25", "&lt;ant&gt; taken for cat: 1 of 4 (25%)"),
        ("1.00", "cat as they are: 5 of 5 (100%)"),
    ]
    assert ">&lt;ant&gt;</text>" in drawing
    assert "bee" not in drawing, "of which there is no image"


def test_names_are_left_out_where_there_are_too_many() -> None:
    names = [f"class {number}" for number in range(50)]
    drawing = str(confusion_chart("many", names, [[number, number, 1] for number in range(50)]).drawing)
    assert drawing.count("<rect") == 50
    assert "<text" not in drawing
