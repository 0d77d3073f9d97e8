"""Responses of any model, with or without an adapter, to a benchmark's questions."""
