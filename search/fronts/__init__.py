"""The front: computing it, choosing from it, showing it."""
