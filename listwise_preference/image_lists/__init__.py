"""Making ranked image lists: which object to hide, where it is, whether hiding it takes the answer away."""
