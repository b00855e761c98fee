"""The scenes world: drawn shapes with exact ground truth."""

from tessera.data.worlds.scenes.graph import Scene, SceneObject, is_heldout, random_scene
from tessera.data.worlds.scenes.world import ScenesWorld

__all__ = ["Scene", "SceneObject", "ScenesWorld", "is_heldout", "random_scene"]
