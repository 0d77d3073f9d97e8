"""What finds the boxes of objects."""
