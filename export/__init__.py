"""Compile a PyTorch checkpoint into a bundle. Only in this folder may torch be imported."""
