"""An adapter and its base model made one, saved, and proved to be the same on disk."""
