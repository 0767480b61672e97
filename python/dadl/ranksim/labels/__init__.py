"""What is made of the labels: bins, and what the network learns in their place."""
