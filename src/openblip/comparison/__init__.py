"""Models x tasks x seeds from one file: what is missing is trained, and the tables are written."""
