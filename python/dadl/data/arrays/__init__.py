"""Arrays in files: idx, CIFAR and npz."""
