"""The triplet loss of DRLIH, in operations that NumPy arrays and torch tensors share. Imports neither."""

from __future__ import annotations

__all__ = ["triplet_hinge"]


def triplet_hinge(positive_distances, negative_distances, margin):  # type: ignore[no-untyped-def]
    """Return max(0, m + d(x, x+) - d(x, x-)) of DRLIH eq. 3, element by element.

    The triplet reward averages it over an image's partners, and ``noseq`` and the agent's ``paper`` variant over all
    triplets of a batch, for the gradient.

    Args:
        positive_distances: squared distances to similar images, of a shape that broadcasts with the other.
        negative_distances: squared distances to dissimilar images.
        margin: m, in units of the distance.
    """
    return (margin + positive_distances - negative_distances).clip(0)
