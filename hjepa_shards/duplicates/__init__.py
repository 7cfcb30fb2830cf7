"""Images that occur twice: perceptual hashes of all images, and the pairs that are near each other.

Pages about them: `reports`, next.
"""
