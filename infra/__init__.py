"""The composition root: recipes, the command line, and the wiring of processes."""

import gc

# What we stand on makes a million objects when it is imported, and they stay: to look through them
# for garbage again and again takes a quarter of the time of a start. Later there is hardly any.
gc.set_threshold(100_000, 20, 20)
