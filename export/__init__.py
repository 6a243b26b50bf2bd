"""From trained weights to a bundle. Never imported by the runtime."""
