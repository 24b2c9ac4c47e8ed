"""One module a command group; each option is explained where it is declared."""
