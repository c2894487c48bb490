"""A release and what it is made from: the commit, the image, the registry."""
