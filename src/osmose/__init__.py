"""osmose: mixing operators for PyTorch."""
