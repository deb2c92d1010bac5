"""Near-duplicates and leaks: what a table holds twice, and what an evaluation would see again."""
