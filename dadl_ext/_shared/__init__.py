"""What the compiled functions and the reference share."""
