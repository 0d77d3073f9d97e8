"""Pairs, box lists and ranked images: read, checked, drawn."""
