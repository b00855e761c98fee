"""Readers of the field's own formats."""

from tessera.data.readers.sniff import open_reader

__all__ = ["open_reader"]
