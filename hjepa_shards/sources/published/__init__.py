"""Datasets with a fixed layout and known counts, a file each: CIFAR, STL-10, ImageNet, Places365, COCO.

The user's own images: `own`, next.
"""
