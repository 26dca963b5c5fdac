"""The console: the page for the admin, of any number of agents. It talks to agents alone."""
