"""Which objects a text names, and in which order to mask them."""
