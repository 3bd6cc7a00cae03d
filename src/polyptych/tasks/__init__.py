"""What is predicted: one file per task owns its channels, loss, metric, label geometry, decoding and colors."""
