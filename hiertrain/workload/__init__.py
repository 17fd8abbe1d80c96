"""What is trained: models as chains of layers, data and their order, optimizers, and weights as files and messages."""
