"""Checkpoints and adapters: loaded, checked, and what is special to a family."""
