"""One image: which format it is, whether it is whole, and how it is decoded, cropped, scaled down and encoded.

Crops of a training batch are drawn in `crop.py`. The compiled parts of these are beside them. Many images in a file:
`shards`.
"""
