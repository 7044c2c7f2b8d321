"""Base images: the content-addressed store, its manifests, and the recipes that build new generations."""

from vmimagemanager.images.catalogue import RECIPES, Recipe
from vmimagemanager.images.manifest import Image
from vmimagemanager.images.store import ImageStore
from vmimagemanager.progress import Progress

__all__ = ["RECIPES", "Image", "ImageStore", "Progress", "Recipe"]
