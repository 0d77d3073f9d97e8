"""See it work: one run of every program on a small model, and its page."""
