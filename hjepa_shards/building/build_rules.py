"""The number of the rules by which raw data becomes samples: which files, which labels, which pixels.

It is in `.journal/plan.json`; a plan without one was made by rules 1. An unfinished build, a worker and a repair refuse
a plan of another number, for the shards of one split follow one set of rules. Data that earlier rules read rightly has
the same bytes under these; finished splits are read whatever their number.

1: until 0.1.  2: labels of a folder's splits are numbered over train, then their own classes; Training, Validation and
other words for splits; linked folders, more kinds of image files, and those without an extension; 11.0 in .cls;
orientation of TIFF and AVIF once; deep greys scaled; damaged PNGs excluded where images are encoded again; up to 268
megapixels; members after the first end mark of a tar, and its hard links; quoted delimiters and lines, arrays and the
split column of caption lists, whose headers are no images; a note of images that COCO's annotations do not list.
"""

from hjepa_shards.errors import BuildMismatch

RULES = 2


def require_rules(rules: int, where: str) -> None:
    """BuildMismatch where a split was begun by other rules than these.  rules: its number.  where: for the message."""
    if rules != RULES:
        raise BuildMismatch(
            f"{where}: rules {RULES} expected, begun by rules {rules} of another version of hjepa-shards; continue "
            "with that version, or build into another folder (finished splits are read by every version)"
        )
