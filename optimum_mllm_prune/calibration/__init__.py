"""Rows of images and messages to model inputs with token masks, and the passes that observe them."""
