"""Networks as TensorFlow Lite's operators: from the nodes of an ONNX graph, in float32 or int8, as a .tflite file."""
