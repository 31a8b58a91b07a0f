"""What this library costs, side by side with its peers: ``python -m benchmarks``."""
