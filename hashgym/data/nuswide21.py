"""Reader."""

LAYOUT = ""
