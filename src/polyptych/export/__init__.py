"""Export of a trained network to one file, ONNX or torch.export, which is checked against the network."""
