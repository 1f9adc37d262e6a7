"""What several systems are made of: each part once, whatever the model that wears it."""
