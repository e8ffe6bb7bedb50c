"""What is shipped: exported files and quantized ones."""
