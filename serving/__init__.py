"""Versions in, answers out: the replica, the recommender, the HTTP interface, the playground."""
