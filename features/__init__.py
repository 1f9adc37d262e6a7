"""Events in; the user's history, item statistics, the catalog and model inputs out."""
