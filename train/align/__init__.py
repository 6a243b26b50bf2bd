"""Stage 2: images and reports in one space (contrastive alignment), and retrieval between them."""
