"""Samples in, versions out: embedding tables, frequency estimate, losses, models, the trainer."""
