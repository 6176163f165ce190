"""TensorRT engines: build them, ahead of time too, and store them."""
