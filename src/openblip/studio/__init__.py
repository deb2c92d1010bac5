"""The studio: a local web page in which a collection is looked into and steered."""
