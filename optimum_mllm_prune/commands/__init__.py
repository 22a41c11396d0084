"""The optimum-cli commands."""
