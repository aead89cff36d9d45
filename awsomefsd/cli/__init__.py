"""The command line, one file a command group. It knows the admin API and the configuration."""
