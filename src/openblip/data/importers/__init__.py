"""Readers for the layouts that image-text pairs come in, and the import that drives them."""
