"""Places Samples come from."""

from tessera.data.worlds.base import open_world, world_names

__all__ = ["open_world", "world_names"]
