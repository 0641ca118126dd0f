"""Dux, many trials: the command line, the study, the front, export."""
