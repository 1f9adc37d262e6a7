"""The composition root: recipes, the command line, and the wiring of processes."""
