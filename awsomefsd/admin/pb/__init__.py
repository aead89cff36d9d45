"""Generated from admin.proto by grpcio-tools."""
