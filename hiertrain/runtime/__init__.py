"""What runs inside a worker: its program executed, tensors exchanged, signs of life sent."""
