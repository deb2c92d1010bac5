"""Pages on which people look at what a model gets wrong, one module per task."""
