"""From sources on disk to batches: import, table, views, text, images, loader."""
