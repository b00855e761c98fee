"""The objects of a scene as a detector that is never wrong would report them."""

from __future__ import annotations

from tessera.data.regions import Regions, as_shares, named
from tessera.data.worlds.scenes.draw import object_boxes
from tessera.data.worlds.scenes.graph import COLOURS, SHAPES, SIZE, Scene

OBJECT_CLASSES, ATTRIBUTE_CLASSES = SHAPES, COLOURS


def scene_regions(scene: Scene) -> Regions:
    """Boxes around what is visible of each object; its shape is its class, its colour its attribute."""
    things = scene.objects
    return named(
        as_shares(object_boxes(scene), SIZE, SIZE),
        [SHAPES.index(thing.shape) for thing in things],
        [COLOURS.index(thing.colour) for thing in things],
    )
