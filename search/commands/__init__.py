"""Dux's commands: shared.py is what they have in common, look.py those that look, work.py those that work."""
