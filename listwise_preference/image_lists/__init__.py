"""From pairs and pictures to ranked lists: find the critical object, verify that it is critical, look at the result."""
