"""Listwise preference optimization of an adapter."""
