"""The training recipe in PyTorch. Never imported by the runtime."""
