"""How flows are served, and how they are called."""
