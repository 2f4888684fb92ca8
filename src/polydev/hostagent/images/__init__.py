"""Golden images and the guest kernel that a host's machines boot from.

The machines' service finds them here; `polydev image` builds, lists and verifies them. The recipes
(`images/`) and the guest files (`src/polydev/guest/`) define the content; this package assembles
it.
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
