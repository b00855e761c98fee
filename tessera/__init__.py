"""Tessera: a picture is one more kind of word."""
