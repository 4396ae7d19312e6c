"""The site of the documents, and the pictures in it."""
