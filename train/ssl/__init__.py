"""Stage 1, vision: the encoder learns from images alone, by self-distillation or as a masked autoencoder."""
