"""Built splits, checked byte by byte and image by image, and made whole again from raw data.

Raw data itself is checked in `downloading`. Which sample comes when: `mixture`, next.
"""
