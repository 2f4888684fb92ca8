"""Golden images and the guest kernel: what machines of one host boot from.

`machines.py` finds them here, the `polydev image` commands build, list and verify them. What is
in an image is said by the recipes (`images/`) and the guest files (`src/polydev/guest/`);
this package only knows how to put them together.
"""

from polydev.hostagent.images.manifest import BuildProgress, GoldenImage, ImageKind, ProgressSink
from polydev.hostagent.images.recipe import Distribution, Recipe
from polydev.hostagent.images.store import ImageStore

__all__ = [
    "BuildProgress",
    "Distribution",
    "GoldenImage",
    "ImageKind",
    "ImageStore",
    "ProgressSink",
    "Recipe",
]
