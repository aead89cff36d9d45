"""How people ask: the command line, one file a command group.  Knows the admin API and the configuration, nothing else of the system."""
