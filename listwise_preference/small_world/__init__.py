"""A world small enough to train in on a laptop: real model classes at toy sizes."""
