"""Models for other runtimes: graphs of their parts, and the folders that hold them."""
