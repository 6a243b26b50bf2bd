"""Training recipes in PyTorch. Never imported by the runtime."""
