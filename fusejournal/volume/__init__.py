"""One volume: the ordered place where a change happens, how it is opened and recovered, and what
keeps it durable."""
