"""The index of a table or a folder, and what is searched in it by texts and images."""
