"""Runs as functions that return one typed `Recipe`; numbers from the paper stand here."""
