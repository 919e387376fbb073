"""A trained model as an ONNX file, which other programs run without torch; needs the extra packages `export`."""
