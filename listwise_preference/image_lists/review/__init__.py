"""A page to look at ranked lists and to reject bad ones."""
