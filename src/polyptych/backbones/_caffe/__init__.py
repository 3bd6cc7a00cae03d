"""Networks described layer by layer in Caffe's prototxt format, and the operators that they need."""
