"""Make preference pairs from a model's own responses: the better supported by the image against the worse."""
