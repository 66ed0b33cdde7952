"""One request of a matched route, from reading it to its settled answer. Read `attach` first."""
