"""Models of this library in other people's evaluation harnesses."""
