"""Dux's commands: look.py has those that only show things, work.py the others, shared.py what they have in common."""
