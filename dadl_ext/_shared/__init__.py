"""Code that the compiled functions and the reference share."""
