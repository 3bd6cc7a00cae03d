"""One file that runs a trained network elsewhere: ONNX or torch.export, checked against the network it came from."""
