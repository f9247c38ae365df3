"""The reference world: a synthetic world with known truth, and the training of its small models."""
