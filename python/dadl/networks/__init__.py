"""Networks and views of images, our own and those that users bring along."""
