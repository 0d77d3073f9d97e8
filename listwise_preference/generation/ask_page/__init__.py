"""The page of one image: a region is dragged over, and the tokens of the responses show what rests on it."""
