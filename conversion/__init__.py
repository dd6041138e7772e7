"""Between PyTorch and this package: tensor names, streaming reader and writer, proof of equality."""
