"""Generated from csi.proto and registration.proto by grpcio-tools."""
