"""The front: found, chosen from, shown."""
