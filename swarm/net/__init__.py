"""Finding the others and pulling their groups."""
