"""A page of AMBER responses with the words that count marked."""
