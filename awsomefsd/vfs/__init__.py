"""The POSIX semantics of one mount. It knows neither FUSE nor the keeper."""
