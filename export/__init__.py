"""From trained weights to a bundle. Never imported by the runtime."""

from decipher_rt.telemetry import silence_onnxruntime

silence_onnxruntime()  # before any module here imports it: it would report to its maker
