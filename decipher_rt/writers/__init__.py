"""What becomes of a result: files and pictures."""
