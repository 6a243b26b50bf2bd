"""TensorRT engines of both flavours: ``rtx`` builds without a GPU, ``builder`` where the engine will run."""
