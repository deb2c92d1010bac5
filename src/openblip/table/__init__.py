"""The pair table: versions, columns, rows, and the views that say which texts count."""
