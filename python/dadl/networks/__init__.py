"""Networks and views of images, built-in and user-supplied."""
